/* The conversation: send it, show the answer as it comes, stop it, try again. */

import { render } from "./markdown.js";

const find = (id) => document.getElementById(id);

export class Chat {
  /* `readParameters` returns `{system, parameters}` or throws what is wrong with them. */
  constructor(server, { readParameters, onUnauthorized }) {
    this.server = server;
    this.readParameters = readParameters;
    this.onUnauthorized = onUnauthorized;
    this.turns = []; // {role, content, element}
    this.running = null; // the AbortController of the answer that is being made
    this.log = find("log");
    this.prompt = find("prompt");
    this.listen();
  }

  listen() {
    find("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(this.prompt.value);
    });
    this.prompt.addEventListener("keydown", (event) => {
      // While an input method composes a character, Enter belongs to it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send(this.prompt.value);
    });
    this.prompt.addEventListener("input", () => this.fit());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    find("stop").addEventListener("click", () => this.stop());
    find("clear").addEventListener("click", () => this.clear());
    for (const starter of document.querySelectorAll("[data-prompt]")) {
      starter.addEventListener("click", () => this.send(starter.dataset.prompt));
    }
  }

  focus() {
    this.prompt.focus();
  }

  /* Let the field grow with its text, where CSS cannot. */
  fit() {
    if (CSS.supports("field-sizing", "content")) return;
    this.prompt.rows = Math.min(8, this.prompt.value.split("\n").length);
  }

  send(text) {
    if (this.running || !text.trim()) return;
    find("welcome").hidden = true;
    this.prompt.value = "";
    this.fit();
    const turn = new Turn("user", text.trim());
    this.add(turn);
    turn.finish();
    this.answer();
  }

  add(turn) {
    this.turns.push(turn);
    this.log.append(turn.element);
    this.log.scrollTop = this.log.scrollHeight;
  }

  async answer() {
    const turn = new Turn("assistant");
    const controller = new AbortController();
    this.running = controller;
    this.showRunning(true);
    try {
      const { system, parameters } = this.readParameters();
      const messages = this.turns.filter((each) => each.counts).map(({ role, content }) => ({ role, content }));
      if (system) messages.unshift({ role: "system", content: system });
      this.add(turn);
      turn.begin();
      for await (const chunk of this.server.chat({ ...parameters, messages }, controller.signal)) {
        turn.take(chunk);
        this.draw(turn);
      }
    } catch (error) {
      if (error.name === "AbortError") turn.stopped = true;
      else this.fail(turn, error);
    }
    this.running = null;
    this.follow(() => turn.finish(() => this.retry(turn)));
    this.showRunning(false);
    find("announcer").textContent = turn.summary();
  }

  fail(turn, error) {
    turn.error = error.message;
    if (!turn.element.isConnected) this.add(turn);
    if (error.status === 401) this.onUnauthorized();
  }

  /* Draw at most once a frame. */
  draw(turn) {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.follow(() => turn.draw());
    });
  }

  /* Stay at the end of the conversation, unless the reader has scrolled away from it. */
  follow(change) {
    const { log } = this;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    change();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  stop() {
    this.running?.abort();
  }

  /* Ask again for an answer, and forget what came after it. */
  retry(turn) {
    if (this.running) return;
    for (const later of this.turns.splice(this.turns.indexOf(turn))) later.element.remove();
    this.answer();
  }

  clear() {
    this.stop();
    for (const turn of this.turns.splice(0)) turn.element.remove();
    find("welcome").hidden = false;
    this.focus();
  }

  showRunning(running) {
    this.log.setAttribute("aria-busy", String(running)); // a screen reader waits for the whole answer
    const hadFocus = [find("send"), find("stop")].includes(document.activeElement);
    find("send").hidden = running;
    find("stop").hidden = !running;
    if (hadFocus) (running ? find("stop") : this.prompt).focus();
  }
}

/* One message and the element that shows it. */
class Turn {
  constructor(role, content = "") {
    this.role = role;
    this.content = content;
    this.thoughts = "";
    this.error = "";
    this.stopped = false;
    this.finishReason = null;
    this.usage = null;
    this.element = document.createElement("article");
    this.element.className = `turn ${role}`;
    this.element.setAttribute("aria-label", role === "user" ? "You" : "Answer");
    this.body = document.createElement("div");
    this.body.className = "body";
    this.foot = document.createElement("footer");
    this.element.append(this.body, this.foot);
  }

  /* A failed or empty answer is no part of the conversation that is sent. */
  get counts() {
    return this.role === "user" || (this.content !== "" && !this.error);
  }

  begin() {
    this.begun = performance.now();
    this.element.classList.add("running");
  }

  take({ choices, usage }) {
    const delta = choices[0]?.delta ?? {};
    const text = delta.content ?? "";
    const thought = delta.reasoning ?? delta.reasoning_content ?? "";
    if (text || thought) {
      this.last = performance.now();
      this.first ??= this.last;
    }
    this.content += text;
    this.thoughts += thought;
    this.finishReason = choices[0]?.finish_reason ?? this.finishReason;
    if (usage) {
      this.usage = usage;
      if (this.first !== undefined) this.atFirst ??= usage.completion_tokens;
    }
  }

  draw() {
    const parts = [];
    if (this.thoughts) {
      const details = this.body.querySelector("details") ?? document.createElement("details");
      const summary = document.createElement("summary");
      summary.textContent = "Reasoning";
      details.replaceChildren(summary, ...render(this.thoughts));
      parts.push(details);
    }
    if (this.role === "user") parts.push(paragraph(this.content));
    else parts.push(...render(this.content));
    if (this.error) {
      const message = paragraph(this.error);
      message.className = "error";
      message.setAttribute("role", "alert");
      parts.push(message);
    }
    this.body.replaceChildren(...parts);
    if (this.role === "assistant") this.note().textContent = this.summary();
  }

  note() {
    this.summaryElement ??= this.foot.appendChild(document.createElement("span"));
    return this.summaryElement;
  }

  finish(retry) {
    this.element.classList.remove("running");
    this.draw();
    if (retry) {
      if (this.content && navigator.clipboard) this.button("Copy", () => navigator.clipboard.writeText(this.content));
      this.button("Try again", retry);
    }
  }

  button(label, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.textContent = label;
    button.addEventListener("click", action);
    this.foot.append(button);
  }

  /* What it took, as one line of text. */
  summary() {
    const parts = [];
    if (this.usage) {
      const { completion_tokens: made, prompt_tokens: read } = this.usage;
      parts.push(`${count(made, "token")} after ${count(read, "token")} of prompt`);
      const seconds = (this.last - this.first) / 1000;
      // The tokens of the first chunk took the time to the first token.
      if (made > this.atFirst && seconds > 0) parts.push(`${((made - this.atFirst) / seconds).toFixed(1)} tokens/s`);
    }
    if (this.first !== undefined) parts.push(`first after ${((this.first - this.begun) / 1000).toFixed(2)} s`);
    if (this.stopped) parts.push("stopped");
    else if (this.error) parts.push("failed");
    else if (this.finishReason === "length") parts.push("cut at the longest length");
    return parts.join(" · ");
  }
}

function paragraph(text) {
  return Object.assign(document.createElement("p"), { textContent: text });
}

function count(number, thing) {
  return `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;
}
