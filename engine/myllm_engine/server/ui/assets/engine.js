/* The live view: ask the server once a second what its engine does, and draw the last two minutes. */

import { Chart } from "./chart.js";

const SAMPLES = 120;
const EVERY = 1000; // ms
const PATIENCE = 5000; // ms; longer than that, the server is as good as gone

const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const percent = (value) => `${number(value * 100)} %`;
const milliseconds = (value) => (value >= 10_000 ? `${number(value / 1000, 1)} s` : `${number(value, value < 10 ? 1 : 0)} ms`);

/* What is drawn: `read` takes the newest sample and the one before, and returns `[values, detail]`. */
const VIEWS = [
  {
    title: "Tokens per second",
    lines: ["made"],
    format: (value) => number(value, value < 10 ? 1 : 0),
    read: (now, before) => {
      const made = rate(now, before, "generation_tokens_total");
      return [[made], `${number(now.engine.generation_tokens_total)} made since it started`];
    },
  },
  {
    title: "Running",
    lines: ["running", "waiting"],
    format: (value) => number(value),
    read: ({ engine, server }) => [
      [engine.num_running, engine.num_waiting],
      `${number(engine.num_waiting)} waiting; room for ${number(server.max_num_seqs)} at once`,
    ],
  },
  {
    title: "KV cache in use",
    lines: ["use"],
    format: percent,
    top: 1,
    read: ({ engine, server }) => {
      const used = engine.kv_pages_total - engine.kv_pages_free;
      return [
        [used / engine.kv_pages_total],
        `${number(used * server.page_size)} of ${number(engine.kv_pages_total * server.page_size)} tokens`,
      ];
    },
  },
  {
    title: "Prompt tokens found cached",
    lines: ["found"],
    format: percent,
    top: 1,
    read: (now, before) => {
      const asked = grown(now, before, "prefix_queried_tokens_total");
      const found = grown(now, before, "prefix_cached_tokens_total");
      const all = now.engine.prefix_queried_tokens_total;
      const share = all ? percent(now.engine.prefix_cached_tokens_total / all) : "none";
      return [[asked ? found / asked : null], `${share} of ${number(all)} since it started`];
    },
  },
  {
    title: "Time to first token",
    lines: ["median", "95th percentile"],
    format: milliseconds,
    read: ({ latency }) => waits(latency.first_token),
  },
  {
    title: "Time between tokens",
    lines: ["median", "95th percentile"],
    format: milliseconds,
    read: ({ latency }) => waits(latency.between_tokens),
  },
];

function grown(now, before, counter) {
  return before ? now.engine[counter] - before.engine[counter] : 0;
}

function rate(now, before, counter) {
  return before ? grown(now, before, counter) / (now.seconds - before.seconds) : 0;
}

function waits({ p50, p95 }) {
  const detail = p50 === null ? "nothing in the last half minute" : `median; 95 % within ${milliseconds(p95)}`;
  return [[p50, p95], detail];
}

export class EngineView {
  /* `onServer` gets what is served, `onState` a state ("ready", "busy", "down") and words for it. */
  constructor(server, { onServer, onState }) {
    this.server = server;
    this.onServer = onServer;
    this.onState = onState;
    this.before = null;
    this.timer = 0;
    this.charts = VIEWS.map((view) => new Chart({ ...view, length: SAMPLES }));
    document.getElementById("cards").append(...this.charts.map((chart) => chart.element));
    // A page that nobody sees asks nothing.
    document.addEventListener("visibilitychange", () => (document.hidden ? this.pause() : this.start()));
  }

  start() {
    this.pause();
    this.tick();
  }

  pause() {
    clearTimeout(this.timer);
    this.round = null;
  }

  async tick() {
    const round = (this.round = {}); // of several that were started, the last goes on
    try {
      const now = await this.server.stats(AbortSignal.timeout(PATIENCE));
      if (round !== this.round) return;
      this.take(now);
    } catch (error) {
      if (round !== this.round) return;
      this.fail(error);
      if (error.status === 401) return; // goes on when there is a key
    }
    this.timer = setTimeout(() => this.tick(), EVERY);
  }

  take(now) {
    this.notice("");
    if (!this.before) this.onServer(now.server);
    if (this.before && now.engine.generation_tokens_total < this.before.engine.generation_tokens_total) {
      this.before = null; // the server was restarted: its counters began anew
    }
    VIEWS.forEach((view, place) => this.charts[place].add(...view.read(now, this.before)));
    this.before = now;
    this.facts(now);
    const { num_running: running, num_waiting: waiting } = now.engine;
    if (!now.alive) this.onState("down", "the engine has died");
    else if (running + waiting) this.onState("busy", waiting ? `${running} running, ${waiting} waiting` : `${running} running`);
    else this.onState("ready", "ready");
  }

  fail(error) {
    const needsKey = error.status === 401;
    this.notice(needsKey ? "The live view needs an API key: enter it in the settings." : error.message);
    this.onState("down", needsKey ? "needs an API key" : "unreachable");
  }

  notice(text) {
    const element = document.getElementById("engine-notice");
    element.hidden = !text;
    element.textContent = text;
  }

  facts({ engine, server }) {
    const facts = {
      Device: `${server.device}, ${server.dtype}`,
      Context: `${number(server.max_model_len)} tokens`,
      "Prompt tokens": number(engine.prompt_tokens_total),
      Preemptions: number(engine.num_preemptions),
      ...(engine.draft_tokens_total
        ? { "Drafts accepted": percent(engine.accepted_tokens_total / engine.draft_tokens_total) }
        : {}),
      Version: server.version,
      Started: new Date(server.started * 1000).toLocaleString(),
    };
    const list = document.getElementById("facts");
    const nodes = Object.entries(facts).flatMap(([name, value]) => [
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    ]);
    list.replaceChildren(...nodes);
  }
}
