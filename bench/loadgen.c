/* Load generator: N streams at a time from one server on loopback, every event counted and checked.
 *
 * One thread, one epoll. Each of N slots posts a request, reads its stream to the end and, until the time is up, starts
 * the next. A stream is right when its answer is a chunked 200, its events are exactly COUNT, their ids (where there are
 * any) count from 1 under one prefix, an `event: done` follows and the last chunk is there. Everything else is a failure.
 * An event's key "T" is the CLOCK_MONOTONIC time of its making, in nanoseconds; how late it arrives is its latency, taken
 * on the plateau: after every slot has had an event and before any stream ends. Prints one line of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum phase { IDLE, CONNECTING, HEAD, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, LAST_CHUNK };

struct stream {
    int fd;
    enum phase phase;
    size_t left;               /* bytes of the chunk still to come */
    char line[1024];           /* a line that has not ended yet */
    size_t line_len;
    int status, chunked;       /* from the head */
    char prefix[128];          /* of the event ids */
    long last_id, events;
    int has_data, ended;       /* of the block being read; the done event has been read */
    uint64_t stamp;            /* of the block being read; 0 without one */
    char event[16];            /* its `event:` */
    uint64_t started;
    int had_first;
};

struct samples { uint32_t *at; size_t len, cap; };  /* microseconds, except that `latency` holds nanoseconds / 100 */

static int port, slots = 1;
static long count = 100;
static double seconds, ramp, limit = 60;
static char request[2048];
static size_t request_len;

static struct stream *streams;
static int poller;
static uint64_t now, start, plateau_from, plateau_to, last_end;
static long begun, completed, failures, running, firsts, total_events, total_bytes, reads;
static char first_failure[256];
static struct samples first_event, latency;

static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void keep(struct samples *s, uint64_t value) {
    if (s->len == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 4096;
        s->at = realloc(s->at, s->cap * sizeof *s->at);
        if (!s->at) abort();
    }
    s->at[s->len++] = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double quantile(const struct samples *s, double q) {
    return s->len ? s->at[(size_t)(q * (double)(s->len - 1) + 0.5)] : 0;
}

/* ---- one stream ---- */

static void start_stream(struct stream *s) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    memset(s, 0, sizeof *s);
    s->started = clock_ns();
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (s->fd < 0 || (connect(s->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)) {
        perror("connect");
        exit(2);
    }
    struct epoll_event want = {.events = EPOLLOUT, .data.ptr = s};
    epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &want);
    s->phase = CONNECTING;
    begun++, running++;
}

static void end_stream(struct stream *s, const char *fault) {
    close(s->fd);
    s->phase = IDLE;
    running--;
    total_events += s->events;
    last_end = now;
    if (!plateau_to) plateau_to = now;
    if (!fault) { completed++; }
    else if (!failures++)
        snprintf(first_failure, sizeof first_failure, "%s after %ld events", fault, s->events);
    if ((double)(now - start) / 1e9 < seconds) start_stream(s);
}

static const char *verdict(const struct stream *s) {
    if (s->events != count) return "wrong number of events";
    return s->ended ? NULL : "no done event";
}

static void on_connected(struct stream *s) {
    int one = 1;
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (send(s->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) {
        end_stream(s, "request not sent");
        return;
    }
    struct epoll_event want = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &want);
    s->phase = HEAD;
}

static void on_event(struct stream *s) {
    s->events++;
    if (!s->had_first) {
        s->had_first = 1;
        keep(&first_event, (now - s->started) / 1000);
        if (++firsts == slots) plateau_from = now;
    }
    if (s->stamp && plateau_from && !plateau_to) keep(&latency, now > s->stamp ? (now - s->stamp) / 100 : 0);
}

/* Each returns what is wrong with the line, or NULL. */

static const char *on_id(struct stream *s, const char *id) {
    const char *dash = strrchr(id, '-');
    if (!dash || (size_t)(dash - id) >= sizeof s->prefix) return "malformed id";
    size_t len = (size_t)(dash - id);
    if (!s->prefix[0]) memcpy(s->prefix, id, len);
    if (memcmp(s->prefix, id, len) || s->prefix[len]) return "another stream's id";
    return atol(dash + 1) == ++s->last_id ? NULL : "id out of order";
}

static const char *on_block_end(struct stream *s) {
    if (!s->has_data) return s->event[0] ? "event without data" : NULL;
    if (s->ended) return "event after done";
    if (!s->event[0]) on_event(s);
    else if (!strcmp(s->event, "done")) s->ended = 1;
    else return "error event";
    s->has_data = 0, s->event[0] = 0, s->stamp = 0;
    return NULL;
}

static const char *on_body_line(struct stream *s, const char *line) {
    if (!strncmp(line, "data: ", 6)) {
        const char *stamp = strstr(line + 6, "\"T\":");
        s->has_data = 1;
        if (stamp) s->stamp = strtoull(stamp + 4, NULL, 10);
        return NULL;
    }
    if (!strncmp(line, "id: ", 4)) return on_id(s, line + 4);
    if (!line[0]) return on_block_end(s);
    if (!strncmp(line, "event: ", 7)) snprintf(s->event, sizeof s->event, "%s", line + 7);
    else if (line[0] != ':' && strncmp(line, "retry:", 6)) return "a line that is not SSE";
    return NULL;
}

static const char *on_head_line(struct stream *s, const char *line) {
    if (!s->status) s->status = strncmp(line, "HTTP/1.1 ", 9) ? -1 : atoi(line + 9);
    if (!strcasecmp(line, "transfer-encoding: chunked")) s->chunked = 1;
    if (line[0]) return NULL;
    s->phase = CHUNK_SIZE;
    return s->status != 200 ? "status is not 200" : s->chunked ? NULL : "not chunked";
}

static const char *on_size_line(struct stream *s, const char *line) {
    char *end;
    s->left = strtoul(line, &end, 16);
    if (end == line) return "bad chunk size";
    s->phase = s->left ? CHUNK_DATA : LAST_CHUNK;
    return NULL;
}

/* Takes one line, or as much of it as there is; says how many bytes that was. */
static size_t take_line(struct stream *s, const char *bytes, size_t len, const char **fault) {
    const char *newline = memchr(bytes, '\n', len);
    size_t used = newline ? (size_t)(newline - bytes) + 1 : len;
    if (s->line_len + used >= sizeof s->line) {
        *fault = "line too long";
        return used;
    }
    memcpy(s->line + s->line_len, bytes, used);
    s->line_len += used;
    if (!newline) return used;
    s->line_len--;
    if (s->line_len && s->line[s->line_len - 1] == '\r') s->line_len--;
    s->line[s->line_len] = 0;
    s->line_len = 0;
    switch (s->phase) {
    case HEAD: *fault = on_head_line(s, s->line); break;
    case CHUNK_SIZE: *fault = on_size_line(s, s->line); break;
    case CHUNK_DATA: *fault = on_body_line(s, s->line); break;
    case CHUNK_END: s->phase = CHUNK_SIZE; *fault = s->line[0] ? "bad chunk end" : NULL; break;
    default: s->phase = IDLE; *fault = s->line[0] ? "trailers" : NULL; break;
    }
    return used;
}

static void feed(struct stream *s, const char *bytes, size_t len) {
    const char *fault = NULL;
    while (len && !fault && s->phase != IDLE) {
        int data = s->phase == CHUNK_DATA;
        size_t used = take_line(s, bytes, data && s->left < len ? s->left : len, &fault);
        bytes += used, len -= used;
        if (data && !(s->left -= used)) s->phase = CHUNK_END;
    }
    if (fault) end_stream(s, fault);
    else if (s->phase == IDLE) end_stream(s, len ? "bytes after the end" : verdict(s));
}

static void on_ready(struct stream *s) {
    static char buffer[1 << 18];
    if (s->phase == IDLE) return;
    if (s->phase == CONNECTING) {
        on_connected(s);
        return;
    }
    ssize_t got = recv(s->fd, buffer, sizeof buffer, 0);
    now = clock_ns();
    if (got > 0) {
        total_bytes += got, reads++;
        feed(s, buffer, (size_t)got);
    } else if (got == 0) end_stream(s, "closed by the server");
    else if (errno != EAGAIN) end_stream(s, strerror(errno));
}

/* ---- all of them ---- */

static void run(void) {
    struct epoll_event ready[256];
    int next = 0;
    start = now = clock_ns();
    while (next < slots || running) {
        now = clock_ns();
        double elapsed = (double)(now - start) / 1e9;
        if (elapsed > limit) break;
        while (next < slots && elapsed >= ramp * next / slots) start_stream(&streams[next++]);
        int n = epoll_wait(poller, ready, 256, next < slots ? 1 : 100);
        now = clock_ns();
        for (int i = 0; i < n; i++) on_ready(ready[i].data.ptr);
    }
    now = clock_ns();
    seconds = 0;
    for (int i = 0; i < next; i++)
        if (streams[i].phase != IDLE) end_stream(&streams[i], "out of time");
}

static void print_samples(const char *name, struct samples *s, double unit) {
    if (s->len) qsort(s->at, s->len, sizeof *s->at, ascending);
    printf("\"%s\": {\"n\": %zu, \"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f}", name, s->len,
           quantile(s, .5) * unit, quantile(s, .99) * unit, quantile(s, .999) * unit, quantile(s, 1) * unit);
}

static void report(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"streams\": %ld, \"completed\": %ld, \"failures\": %ld, \"failure\": \"%s\", \"events\": %ld, ",
           begun, completed, failures, first_failure, total_events);
    printf("\"bytes\": %ld, \"reads\": %ld, ", total_bytes, reads);
    printf("\"wall\": %.6f, \"cpu\": %.6f, \"plateau\": [%.6f, %.6f], ", (double)(last_end - start) / 1e9, cpu,
           (double)plateau_from / 1e9, (double)plateau_to / 1e9);
    print_samples("first_event_us", &first_event, 1);
    printf(", ");
    print_samples("latency_us", &latency, .1);
    printf("}\n");
}

int main(int argc, char **argv) {
    const char *body = "{}", *path = "/infer";
    for (int option; (option = getopt(argc, argv, "p:u:b:n:c:s:r:m:")) != -1;) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'u': path = optarg; break;
        case 'b': body = optarg; break;
        case 'n': slots = atoi(optarg); break;
        case 'c': count = atol(optarg); break;
        case 's': seconds = atof(optarg); break;  /* no stream starts after this; at least one per slot */
        case 'r': ramp = atof(optarg); break;     /* seconds over which the slots start */
        case 'm': limit = atof(optarg); break;    /* seconds after which what still runs has failed */
        default: return 2;
    }
    request_len = (size_t)snprintf(request, sizeof request,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
        path, port, strlen(body), body);
    streams = calloc((size_t)slots, sizeof *streams);
    poller = epoll_create1(0);
    if (!streams || poller < 0 || request_len >= sizeof request) return 2;
    run();
    report();
    return 0;
}
