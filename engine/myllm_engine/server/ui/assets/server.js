/* Talk to the server: JSON, and streams of server-sent events over fetch. */

/* What the server said of a failure, in its own words; `status` is 0 when it could not be reached. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export class Server {
  /* `key` is a function that returns the API key; "" for none. */
  constructor(key) {
    this.key = key;
  }

  async models() {
    const { data } = await (await this.request("v1/models")).json();
    return data.map((model) => model.id);
  }

  async stats(signal) {
    return (await this.request("ui/stats", { signal })).json();
  }

  /* Yield the chunks of a chat completion as they come. */
  async *chat(body, signal) {
    const response = await this.request("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } }),
      signal,
    });
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(words(chunk, "The stream failed."), chunk.error.code);
      yield chunk;
    }
    throw new ServerError("The connection was cut before the answer was complete.");
  }

  async request(path, options = {}) {
    const key = this.key();
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The server cannot be reached.");
    }
    if (response.ok) return response;
    const fallback = `The server answered with status ${response.status}.`;
    const body = await response.json().catch(() => ({}));
    throw new ServerError(words(body, fallback), response.status);
  }
}

/* Errors are OpenAI's `{error: {message}}`, or TGI's `{error: text}`. */
function words(body, fallback) {
  const error = body?.error;
  return (typeof error === "string" ? error : error?.message) || fallback;
}

/* Yield the data of each event. Our server writes one `data:` line an event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    await reader.cancel().catch(() => {}); // of a stream that has failed already
  }
}
