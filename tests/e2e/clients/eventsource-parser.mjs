// eventsource-parser: every event that its parser and its stream give, and every error of either.
import { createParser } from "eventsource-parser";
import { EventSourceParserStream } from "eventsource-parser/stream";
import { parts, run, stream } from "./jobs.mjs";

const told = ({ event, id, data }) => [event ?? "", id ?? "", data];

async function read(job) {
  const body = job.bytes === undefined ? await post(job) : stream(parts(job));
  const [one, other] = body.tee();
  const [events, streamed] = await Promise.all([parse(one), parseStream(other)]);
  return { events, streamed };
}

async function post({ url, body }) {
  const response = await fetch(url, { method: "POST", body });
  return response.body;
}

async function parse(body) {
  const events = [];
  const parser = createParser({
    onEvent: (event) => events.push(told(event)),
    onError: (error) => events.push(["onError", "", String(error)]),
  });
  const decoder = new TextDecoder();
  for await (const bytes of body) parser.feed(decoder.decode(bytes, { stream: true }));
  return events;
}

async function parseStream(body) {
  const events = [];
  const onError = (error) => events.push(["onError", "", String(error)]);
  const parsed = body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream({ onError }));
  for await (const event of parsed) events.push(told(event));
  return events;
}

await run(read);
