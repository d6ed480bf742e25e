/* Make elements of Markdown: what models write of it, and no HTML. Text only ever becomes text nodes. */

const INLINE = new RegExp(
  [
    "(?<tick>`+)(?<code>.+?)\\k<tick>(?!`)",
    "\\*\\*(?<strong>\\S(?:.*?\\S)?)\\*\\*",
    "\\*(?<star>\\S(?:[^*]*?\\S)?)\\*",
    "(?<![\\w])_(?<emphasis>\\S(?:[^_]*?\\S)?)_(?!\\w)",
    "\\[(?<label>[^\\]]+)\\]\\((?<url>https?://[^\\s)]+)\\)",
    "(?<bare>https?://[^\\s<>()]*[^\\s<>().,;:!?'\"])",
  ].join("|"),
);

function make(tag, ...children) {
  const element = document.createElement(tag);
  element.append(...children);
  return element;
}

function link(url, ...label) {
  const anchor = make("a", ...label);
  anchor.href = url;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  return anchor;
}

/* Return nodes for the text of one paragraph, heading or item. */
export function inline(text) {
  const nodes = [];
  let found;
  while ((found = INLINE.exec(text))) {
    const { code, strong, star, emphasis, label, url, bare } = found.groups;
    if (found.index) nodes.push(text.slice(0, found.index));
    if (code !== undefined) nodes.push(make("code", code.trim()));
    else if (strong !== undefined) nodes.push(make("strong", ...inline(strong)));
    else if (url !== undefined) nodes.push(link(url, ...inline(label)));
    else if (bare !== undefined) nodes.push(link(bare, bare));
    else nodes.push(make("em", ...inline(star ?? emphasis)));
    text = text.slice(found.index + found[0].length);
  }
  if (text) nodes.push(text);
  return nodes;
}

function codeBlock(language, lines) {
  const block = make("pre", make("code", lines.join("\n")));
  block.tabIndex = 0; // so that the keyboard can scroll it
  block.setAttribute("role", "region");
  block.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  if (language) block.dataset.language = language;
  return block;
}

const DEEPEST = 12; // quotes in quotes; a model may go on for ever
const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^\s*>\s?(.*)$/;
const RULE = /^\s*(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;

/* Return the elements of a text; an unfinished one, as it comes in a stream, is fine. */
export function render(text, depth = 0) {
  if (depth > DEEPEST) return [make("p", text)];
  const lines = text.split("\n");
  const blocks = [];
  let paragraph = [];

  const endParagraph = () => {
    if (!paragraph.length) return;
    const element = document.createElement("p");
    paragraph.forEach((line, place) => {
      if (place) element.append(document.createElement("br"));
      element.append(...inline(line));
    });
    blocks.push(element);
    paragraph = [];
  };

  for (let at = 0; at < lines.length; at++) {
    const line = lines[at];
    let found;
    if ((found = FENCE.exec(line))) {
      endParagraph();
      const [, fence, language] = found;
      const code = [];
      while (++at < lines.length && !lines[at].trim().startsWith(fence)) code.push(lines[at]);
      blocks.push(codeBlock(language, code));
    } else if ((found = HEADING.exec(line))) {
      endParagraph();
      // Below the page's own headings, so that their order stays right.
      blocks.push(make(`h${Math.min(found[1].length + 2, 6)}`, ...inline(found[2])));
    } else if (RULE.test(line)) {
      endParagraph();
      blocks.push(document.createElement("hr"));
    } else if (QUOTE.test(line)) {
      endParagraph();
      const quoted = [];
      for (; at < lines.length && (found = QUOTE.exec(lines[at])); at++) quoted.push(found[1]);
      at--;
      blocks.push(make("blockquote", ...render(quoted.join("\n"), depth + 1)));
    } else if (ITEM.test(line)) {
      endParagraph();
      const end = endOfList(lines, at);
      blocks.push(list(lines.slice(at, end), depth));
      at = end - 1;
    } else if (line.trim()) {
      paragraph.push(line);
    } else {
      endParagraph();
    }
  }
  endParagraph();
  return blocks;
}

/* A list goes on over items, indented lines, and blank lines before either. */
function endOfList(lines, from) {
  let end = from;
  for (let at = from; at < lines.length; at++) {
    if (ITEM.test(lines[at]) || /^\s{2,}\S/.test(lines[at])) end = at + 1;
    else if (lines[at].trim()) break;
  }
  return end;
}

function list(lines, depth) {
  const [, indent, , number] = ITEM.exec(lines[0]);
  const element = document.createElement(number === undefined ? "ul" : "ol");
  if (number !== undefined) element.start = Number(number);
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= indent.length) items.push([found[4]]);
    else items.at(-1).push(line.slice(Math.min(indent.length + 2, line.search(/\S|$/))));
  }
  for (const [first, ...more] of items) {
    element.append(make("li", ...inline(first), ...render(more.join("\n"), depth + 1)));
  }
  return element;
}
