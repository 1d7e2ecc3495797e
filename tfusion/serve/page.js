// What the page of `tfusion serve` does: it sends a prompt, and shows each event of
// the answer in the place where it belongs. No library, and nothing from elsewhere.

"use strict";

const by = (id) => document.getElementById(id);
const shown = new Map(); // name -> data: URL, of the pictures that a prompt may show
let running = null; // the AbortController of what is being made

// Pictures.

function fitting(name) {
  // A name that no other picture has, and that can stand in a mark.
  const plain = name.replace(/[<>\s:]+/g, "_") || "picture";
  let free = plain;
  for (let n = 2; shown.has(free); n += 1) free = `${n}_${plain}`;
  return free;
}

function insert(text) {
  const prompt = by("prompt");
  prompt.focus();
  prompt.setRangeText(text, prompt.selectionStart, prompt.selectionEnd, "end");
}

async function addFiles(files) {
  for (const file of files) {
    const url = await new Promise((done, failed) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.onerror = () => failed(reader.error);
      reader.readAsDataURL(file);
    });
    const name = fitting(file.name);
    shown.set(name, url);
    insert(`<image:${name}>`);
  }
  list();
}

function list() {
  by("shown").replaceChildren(
    ...[...shown].map(([name, url]) => {
      const item = document.createElement("li");
      const image = document.createElement("img");
      image.src = url;
      image.alt = name;
      const remove = document.createElement("button");
      remove.type = "button";
      remove.textContent = "Remove";
      remove.setAttribute("aria-label", `Remove ${name}`);
      remove.onclick = () => {
        shown.delete(name);
        by("prompt").value = by("prompt").value.replaceAll(`<image:${name}>`, "");
        list();
      };
      item.append(image, `${name} `, remove);
      return item;
    }),
  );
}

// One answer.

class Article {
  constructor(request) {
    this.node = by("one").content.firstElementChild.cloneNode(true);
    this.said = this.node.querySelector(".said");
    this.status = this.node.querySelector(".status");
    this.picture = null; // the image that is being made
    this.node.querySelector(".again").onclick = () => refill(request);
    by("history").prepend(this.node);
  }

  text(text, made) {
    const last = this.said.lastChild;
    const kind = made ? "made" : "given";
    if (last && last.nodeName === "SPAN" && last.className === kind) {
      last.textContent += text;
    } else {
      const span = document.createElement("span");
      span.className = kind;
      span.textContent = text;
      this.said.append(span);
    }
  }

  image(png, made, share) {
    if (!this.picture) {
      this.picture = document.createElement("img");
      this.picture.className = made ? "made" : "given";
      this.said.append(this.picture);
    }
    this.picture.src = `data:image/png;base64,${png}`;
    this.picture.alt = made ? "image made by the model" : "picture that was shown";
    this.bar?.remove();
    this.bar = null;
    if (share === null) {
      this.picture = null;
    } else {
      this.bar = document.createElement("progress");
      this.bar.value = share;
      this.picture.after(this.bar);
    }
  }

  end(words, failed) {
    this.bar?.remove();
    this.status.textContent = words;
    this.status.classList.toggle("failed", failed);
  }

  take(one) {
    if (one.event === "waiting") {
      this.status.textContent = `${one.before} before you`;
    } else if (one.event === "begun") {
      this.status.textContent = "working; the first time it compiles";
    } else if (one.event === "text") {
      this.text(one.text, one.made);
    } else if (one.event === "preview") {
      this.image(one.png, true, one.step / one.steps);
      this.status.textContent = `step ${one.step} of ${one.steps}`;
    } else if (one.event === "image") {
      this.image(one.png, one.made, null);
    } else if (one.event === "error") {
      throw new Error(one.error);
    }
  }
}

// A request.

function asked() {
  const knobs = {};
  for (const field of document.querySelectorAll(".knob")) {
    if (field.value !== "") knobs[field.name] = Number(field.value);
  }
  const prompt = by("prompt").value;
  const images = {};
  for (const [name, url] of shown) {
    if (prompt.includes(`<image:${name}>`)) images[name] = url;
  }
  const seed = by("seed").value;
  const drawn = Math.floor(Math.random() * 2 ** 32);
  return { prompt, images, knobs, seed: seed === "" ? drawn : Number(seed) };
}

function refill(request) {
  by("prompt").value = request.prompt;
  by("seed").value = request.seed;
  for (const field of document.querySelectorAll(".knob")) {
    field.value = request.knobs[field.name] ?? "";
  }
  for (const [name, url] of Object.entries(request.images)) shown.set(name, url);
  list();
  by("prompt").focus();
}

async function* lines(response) {
  const decoder = new TextDecoder();
  let rest = "";
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

async function refusal(response) {
  const said = await response.text();
  try {
    return JSON.parse(said).error;
  } catch {
    return said || response.statusText;
  }
}

async function make() {
  if (running) return;
  const request = asked();
  running = new AbortController();
  by("error").textContent = "";
  by("make").disabled = true;
  by("stop").disabled = false;
  let article = null;
  try {
    const response = await fetch("api/stream", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request),
      signal: running.signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    article = new Article(request);
    let last = {};
    for await (const one of lines(response)) {
      last = one;
      article.take(one);
    }
    if (last.event !== "end") throw new Error("the server went away");
    const more = last.finished ? "" : "; stopped at max_elements";
    article.end(`seed ${request.seed}${more}`, false);
  } catch (error) {
    const stopped = error.name === "AbortError";
    const words = stopped
      ? "stopped"
      : error instanceof TypeError
        ? "the server does not answer"
        : error.message;
    if (article) article.end(words, !stopped);
    else by("error").textContent = words;
  }
  running = null;
  by("make").disabled = false;
  by("stop").disabled = true;
}

// Keys, buttons, drops.

by("form").onsubmit = (event) => {
  event.preventDefault();
  make();
};
by("stop").onclick = () => running?.abort();
by("mark").onclick = () => insert("<image>");
by("add").onclick = () => by("file").click();
by("file").onchange = (event) => {
  addFiles([...event.target.files]);
  event.target.value = "";
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) make();
  if (event.key === "Escape") running?.abort();
});
by("prompt").addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) {
    event.preventDefault();
    addFiles(files);
  }
});
for (const name of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(name, (event) => {
    if (name !== "dragleave") event.preventDefault();
    by("form").classList.toggle("over", name === "dragover");
    if (name === "drop") addFiles([...event.dataTransfer.files]);
  });
}
