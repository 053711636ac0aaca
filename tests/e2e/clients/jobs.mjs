// What the clients here share: jobs come as JSON on stdin, what each client was told goes as JSON to stdout.

export async function run(read, { atOnce = 16 } = {}) {
  const jobs = JSON.parse(await new Response(process.stdin).text());
  const results = new Array(jobs.length);
  let next = 0;
  const worker = async () => {
    while (next < jobs.length) {
      const job = next++;
      results[job] = await read(jobs[job]);
    }
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, jobs.length) }, worker));
  process.stdout.write(JSON.stringify(results));
}

// The bytes of a job (base64), split at the indices `at`.
export function parts({ bytes, at }) {
  const whole = new Uint8Array(Buffer.from(bytes, "base64"));
  return [...at, whole.length].map((end, index) => whole.slice(index ? at[index - 1] : 0, end));
}

export function stream(pieces) {
  return new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece);
      controller.close();
    },
  });
}

// A fetch that answers from a job's parts once, and with 204 afterwards: exact splits, no network between.
export function fetchParts(job) {
  let asked = 0;
  return async () =>
    asked++
      ? new Response(null, { status: 204 })
      : new Response(stream(parts(job)), { headers: { "content-type": "text/event-stream; charset=utf-8" } });
}
