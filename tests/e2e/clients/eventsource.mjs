// npm eventsource: every event that it dispatches, until it stops for good. `cuts` are sent as X-Cut, one a connection.
import { EventSource } from "eventsource";
import { fetchParts, run } from "./jobs.mjs";

function read(job) {
  return new Promise((resolve) => {
    const events = [];
    const statuses = [];
    const positions = [];
    const cuts = [...(job.cuts ?? [])];
    const request = job.bytes === undefined ? fetch : fetchParts(job);

    const source = new EventSource(job.url ?? "http://localhost/", {
      async fetch(url, init) {
        positions.push(init.headers["Last-Event-ID"] ?? null);
        const headers = cuts.length ? { ...init.headers, "X-Cut": String(cuts.shift()) } : init.headers;
        const response = await request(url, { ...init, headers });
        statuses.push(response.status);
        return response;
      },
    });
    const dispatch = source.dispatchEvent.bind(source);
    source.dispatchEvent = (event) => {
      if (event instanceof MessageEvent) events.push([event.type, event.lastEventId, event.data]);
      return dispatch(event);
    };
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) resolve({ events, statuses, positions });
    };
  });
}

await run(read, { atOnce: 512 });
