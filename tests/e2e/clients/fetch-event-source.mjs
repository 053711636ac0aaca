// @microsoft/fetch-event-source: every message that it is given, until the stream closes. It never reconnects here.
import { fetchParts, run } from "./jobs.mjs";

// It is made for browsers, and asks these two about the page.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = await import("@microsoft/fetch-event-source");

async function read(job) {
  const events = [];
  await fetchEventSource(job.url ?? "http://localhost/", {
    method: job.body === undefined ? "GET" : "POST",
    body: job.body,
    fetch: job.bytes === undefined ? fetch : fetchParts(job),
    openWhenHidden: true,
    onmessage: ({ event, id, data }) => events.push([event, id, data]),
    onerror(error) {
      throw error;
    },
  });
  return { events };
}

await run(read);
