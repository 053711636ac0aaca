/* What the load generator is measured with: ready-made frames as fast as C can send them, one thread a connection.
 *
 * `flood BATCH` sends BATCH events a call: 1 is the bare loop of socket.send without Python, 64 shows how many events
 * the generator can read when the sender costs next to nothing. Prints its address to stderr.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 20000, FRAME = 128 };
static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char ID[] = "0123456789abcdef0123456789abcdef";
static char frames[EVENTS * FRAME];
static size_t ends[EVENTS + 1];
static int batch = 1;

static size_t frame(char *to, long n, const char *rest) {
    char lines[FRAME];
    int len = snprintf(lines, sizeof lines, "id: %s-%ld\n%s\n\n", ID, n, rest);
    return (size_t)sprintf(to, "%x\r\n%s\r\n", len, lines);
}

static int send_all(int fd, const char *bytes, size_t len) {
    while (len) {
        ssize_t sent = send(fd, bytes, len, MSG_NOSIGNAL);
        if (sent < 0) return -1;
        bytes += sent, len -= (size_t)sent;
    }
    return 0;
}

static void *answer(void *arg) {
    int fd = (int)(long)arg, one = 1;
    char request[4096] = "", last[FRAME + 8];
    size_t got = 0;
    const char *counted;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (!(counted = strstr(request, "\"COUNT\": ")) || !strchr(counted, '}')) {
        ssize_t n = recv(fd, request + got, sizeof request - 1 - got, 0);
        if (n <= 0) goto out;
        got += (size_t)n;
    }
    long count = atol(counted + 9);
    if (count > EVENTS || send_all(fd, HEAD, sizeof HEAD - 1)) goto out;
    for (long n = 0; n < count; n += batch) {
        long to = n + batch < count ? n + batch : count;
        if (send_all(fd, frames + ends[n], ends[to] - ends[n])) goto out;
    }
    size_t len = frame(last, count + 1, "event: done\ndata: {}");
    memcpy(last + len, "0\r\n\r\n", 5);
    send_all(fd, last, len + 5);
out:
    close(fd);
    return NULL;
}

int main(int argc, char **argv) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (argc > 1) batch = atoi(argv[1]);
    for (long n = 0; n < EVENTS; n++) ends[n + 1] = ends[n] + frame(frames + ends[n], n + 1, "data: {\"OUT\":\"token \"}");
    if (bind(listener, (struct sockaddr *)&at, size) || listen(listener, 1024)) return 1;
    getsockname(listener, (struct sockaddr *)&at, &size);
    fprintf(stderr, "http://127.0.0.1:%d\n", ntohs(at.sin_port));
    for (;;) {
        pthread_t thread;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0 || pthread_create(&thread, NULL, answer, (void *)(long)fd)) return 1;
        pthread_detach(thread);
    }
}
