/* A small chart of one or two lines over time, as SVG; its colours come from the style sheet. */

const WIDTH = 240;
const HEIGHT = 42;
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/* Return the smallest of 1, 2, 5, 10, 20, … that is not below `value`. */
export function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.999999);
}

export class Chart {
  /*
   * title: what is drawn; lines: their names, the first one being the chart's own;
   * format: makes a text of a value; top: the scale's end, by default what the values need;
   * length: how many samples there is room for.
   */
  constructor({ title, lines, format, top, length }) {
    Object.assign(this, { title, lines, format, top, length });
    this.samples = []; // each an array of one value a line; null where there was none
    this.element = document.createElement("figure");
    this.element.className = "card";
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    this.value = document.createElement("output");
    this.detail = document.createElement("p");
    this.detail.className = "detail";
    this.svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.area = make("path", { class: "area" });
    this.paths = lines.map((_, place) => make("path", { class: `line line-${place}` }));
    this.rule = make("path", { class: "rule" });
    this.svg.append(this.area, ...this.paths.toReversed(), this.rule);
    this.scale = document.createElement("span");
    this.scale.className = "scale";
    this.scale.setAttribute("aria-hidden", "true");
    this.element.append(caption, this.value, this.svg, this.scale, this.detail);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  /* Add a sample, with a sentence of detail about now. */
  add(values, detail) {
    this.samples.push(values);
    if (this.samples.length > this.length) this.samples.shift();
    this.detail.textContent = detail;
    this.draw();
  }

  draw() {
    const values = this.samples.flat().filter((value) => value !== null);
    const most = Math.max(0, ...values);
    const top = this.top ?? (most > 0 ? niceCeiling(most) : 1);
    const x = (place) => ((this.length - this.samples.length + place) / (this.length - 1)) * WIDTH;
    const y = (value) => HEIGHT - 2 - (Math.min(value, top) / top) * (HEIGHT - 4);
    const runs = this.lines.map((_, line) => split(this.samples.map((sample) => sample[line])));
    runs.forEach((its, line) => {
      this.paths[line].setAttribute("d", its.map((run) => through(run, x, y)).join(""));
    });
    const under = runs[0].map((run) => `${through(run, x, y)}V${HEIGHT}H${x(run[0].place).toFixed(1)}Z`);
    this.area.setAttribute("d", under.join(""));
    this.scale.textContent = most > 0 || this.top ? this.format(top) : "";
    this.svg.setAttribute("aria-label", `${this.title}, now ${this.text(this.samples.at(-1))}; highest ${this.format(most)}`);
    this.show();
  }

  /* Tell the value under the pointer; without one, the newest. */
  point(event) {
    const { left, width } = this.svg.getBoundingClientRect();
    this.pointed = event && width ? (event.clientX - left) / width : null;
    this.show();
  }

  show() {
    const last = this.samples.length - 1;
    let place = last;
    if (this.pointed != null) {
      place = Math.round(this.pointed * (this.length - 1)) - (this.length - this.samples.length);
      place = Math.max(0, Math.min(last, place));
      const x = ((this.length - this.samples.length + place) / (this.length - 1)) * WIDTH;
      this.rule.setAttribute("d", `M${x.toFixed(1)} 0V${HEIGHT}`);
    } else {
      this.rule.removeAttribute("d");
    }
    this.value.textContent = this.text(this.samples[place]);
  }

  text(sample) {
    return sample?.[0] == null ? "–" : this.format(sample[0]);
  }
}

/* Return the stretches of a line that have values, as arrays of `{place, value}`. */
function split(values) {
  const runs = [];
  let open = false;
  values.forEach((value, place) => {
    if (value !== null && !open) runs.push([]);
    if (value !== null) runs.at(-1).push({ place, value });
    open = value !== null;
  });
  return runs;
}

function through(run, x, y) {
  return run.map(({ place, value }, at) => `${at ? "L" : "M"}${x(place).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}
