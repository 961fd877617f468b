"use strict";

const element = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

async function call(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (element("key").value) headers.Authorization = `Bearer ${element("key").value}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) {
    if (response.status === 401) element("key-field").hidden = false;
    throw new Error(answer.error.message);
  }
  return answer;
}

function floats(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

async function embed(input, fields = {}) {
  const body = { model: element("model").value, input, encoding_format: "base64", ...fields };
  const answer = await call("v1/embeddings", body);
  return { vectors: answer.data.map((item) => floats(item.embedding)), usage: answer.usage };
}

const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);

/* Strongest direction of centred vectors, by power iteration; `without` is a direction to leave out. */
function axis(rows, without) {
  const remove = (vector) => {
    if (!without) return vector;
    const share = dot(vector, without);
    return vector.map((value, index) => value - share * without[index]);
  };
  let direction = remove(Array.from(rows[0], (_, index) => Math.sin(index + 1)));
  for (let round = 0; round < 60; round++) {
    const next = new Array(direction.length).fill(0);
    for (const row of rows) {
      const weight = dot(row, direction);
      for (let index = 0; index < next.length; index++) next[index] += weight * row[index];
    }
    const rest = remove(next);
    const length = Math.sqrt(dot(rest, rest)) || 1;
    direction = rest.map((value) => value / length);
  }
  return direction;
}

function project(vectors) {
  const mean = Array.from(vectors[0], (_, index) => vectors.reduce((sum, row) => sum + row[index], 0) / vectors.length);
  const rows = vectors.map((row) => Array.from(row, (value, index) => value - mean[index]));
  const first = axis(rows);
  const second = axis(rows, first);
  return rows.map((row) => [dot(row, first), dot(row, second)]);
}

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function highlight(index, on) {
  for (const node of document.querySelectorAll(`[data-index="${index}"]`)) node.classList.toggle("on", on);
}

function watch(node, index) {
  node.dataset.index = index;
  node.addEventListener("mouseenter", () => highlight(index, true));
  node.addEventListener("mouseleave", () => highlight(index, false));
}

function drawMap(points, passages, rank) {
  const map = element("map");
  map.replaceChildren();
  const scale = (values, size) => {
    const low = Math.min(...values), range = Math.max(...values) - low || 1;
    return values.map((value) => 36 + ((value - low) / range) * (size - 72));
  };
  const x = scale(points.map((point) => point[0]), 640);
  const y = scale(points.map((point) => point[1]), 340);
  const query = points.length - 1;
  const best = rank[0];
  map.append(shape("line", { x1: x[query], y1: y[query], x2: x[best], y2: y[best] }));
  rank.forEach((index, place) => {
    const circle = shape("circle", { cx: x[index], cy: y[index], r: 7 });
    circle.append(shape("title", {}, passages[index]));
    watch(circle, index);
    map.append(circle, shape("text", { x: x[index] + 10, y: y[index] + 4 }, place + 1));
  });
  map.append(shape("circle", { cx: x[query], cy: y[query], r: 8, class: "query" }));
  map.append(shape("text", { x: x[query] + 12, y: y[query] + 4, class: "query" }, "query"));
}

function listResults(passages, scores, rank) {
  const items = rank.map((index, place) => {
    const item = document.createElement("li");
    const text = document.createElement("div");
    text.textContent = passages[index];
    const bar = document.createElement("div");
    bar.className = "bar";
    const fill = document.createElement("i");
    fill.style.width = `${Math.max(0, scores[index]) * 100}%`;
    bar.append(fill);
    text.append(bar);
    const column = (name, value) => {
      const node = document.createElement("span");
      node.className = name;
      node.textContent = value;
      return node;
    };
    item.append(column("rank", place + 1), text, column("score", scores[index].toFixed(3)));
    watch(item, index);
    return item;
  });
  element("results").replaceChildren(...items);
}

function say(text, bad = false) {
  element("message").textContent = text;
  element("message").classList.toggle("bad", bad);
}

async function search(event) {
  event.preventDefault();
  const passages = element("passages").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (passages.length === 0) return say("Paste at least one passage.", true);
  const prompt = element("prompt").value;
  element("search").disabled = true;
  say("Embedding…");
  try {
    const started = performance.now();
    const [found, query] = await Promise.all([
      embed(passages),
      embed([element("query").value], prompt ? { prompt_name: prompt } : {}),
    ]);
    const scores = found.vectors.map((vector) => dot(vector, query.vectors[0]));
    const rank = scores.map((_, index) => index).sort((a, b) => scores[b] - scores[a]);
    listResults(passages, scores, rank);
    drawMap(project([...found.vectors, query.vectors[0]]), passages, rank);
    const tokens = found.usage.total_tokens + query.usage.total_tokens;
    const cut = found.usage.truncated ? `, ${found.usage.truncated} passages cut to the maximum length` : "";
    say(`${passages.length} passages, ${tokens} tokens, ${Math.round(performance.now() - started)} ms${cut}`);
  } catch (error) {
    say(error.message, true);
  } finally {
    element("search").disabled = false;
  }
}

async function listInstructions() {
  try {
    const card = await call(`v1/models/${encodeURIComponent(element("model").value)}`);
    const names = Object.keys(card.instructions).sort();
    const options = names.map((name) => {
      const option = new Option(name, name);
      option.title = card.instructions[name];
      return option;
    });
    element("prompt").replaceChildren(new Option("none", ""), ...options);
    if (names.includes("query")) element("prompt").value = "query";
  } catch (error) {
    say(error.message, true);
  }
}

element("form").addEventListener("submit", search);
element("model").addEventListener("change", listInstructions);
element("key").addEventListener("change", listInstructions);
listInstructions();
