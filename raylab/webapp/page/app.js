"use strict";

const TABS = {
  keyframes: { title: "Keyframes", lead: "The moments of a video that matter most." },
  actions: { title: "Actions", lead: "What is done in a video, or before the webcam." },
  labels: { title: "Classes", lead: "What a whole video is, and the measured evidence." },
  models: { title: "Models", lead: "What each model has learned from, and how well." },
};
const SVG = "http://www.w3.org/2000/svg";
const LIVE_WIDTH = 320, LIVE_RATE = 15; // pixels; pictures a second at most

/* Elements: text is only ever set as text, never as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return (h ? `${h}:${String(m).padStart(2, "0")}` : `${m}`) + `:${String(s).padStart(2, "0")}`;
}

const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;
const plain = (name) => name.replaceAll("_", " ");

function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 4 : 3 });
}

/* What the tabs show of an answer. */
function guesses(top) {
  return make("ol", { class: "guesses" }, ...top.map(({ name, probability }) => {
    const bar = make("i");
    bar.style.width = `${100 * probability}%`;
    return make("li", {},
      make("div", { class: "text" }, make("span", {}, name), make("span", { class: "percent" }, percent(probability))),
      make("div", { class: "bar", "aria-hidden": true }, bar));
  }));
}

function heads(top) {
  const cards = Object.entries(top).map(([head, found]) =>
    make("section", { class: "card", "data-head": head }, make("h2", {}, head[0].toUpperCase() + plain(head).slice(1)), guesses(found)));
  return make("div", { class: "heads" }, ...cards);
}

function showActions(found) {
  return [make("p", { class: "small" }, `${found.video}, ${clock(found.start)} to ${clock(found.stop)}`), heads(found.top)];
}

function showKeyframes(found, file) {
  const player = make("video", { controls: true, playsinline: true, preload: "metadata", src: URL.createObjectURL(file) });
  player.addEventListener("error", () => {
    player.replaceWith(make("p", { class: "small" }, "This browser cannot play the file; what was found in it is below."));
  });
  const address = `/results/${found.token}`;
  const seek = (seconds) => { player.currentTime = seconds; };
  const pictures = found.keyframes.map((keyframe, place) => make("li", {},
    make("button", { type: "button", "aria-label": `Go to ${keyframe.timestamp}`, onclick: () => { seek(keyframe.seconds); player.scrollIntoView({ block: "nearest" }); } },
      make("img", { src: `${address}/thumb/${place}`, alt: "", loading: "lazy" }),
      make("span", {}, keyframe.timestamp.replace(/^00:/, ""), make("span", {}, keyframe.importance.toFixed(2))))));
  const count = `${pictures.length} keyframe${pictures.length === 1 ? "" : "s"} of ${found.samples.seconds.length} frames looked at`;
  return [
    make("div", {}, player, curve(found, player, seek),
      make("div", { class: "axis small" }, make("span", {}, clock(found.start)), make("span", {}, "importance"), make("span", {}, clock(found.stop)))),
    make("section", {},
      make("div", { class: "row" }, make("h2", {}, count),
        make("a", { class: "button", href: `${address}/keyframes.zip`, download: true }, "Download as ZIP")),
      make("ol", { class: "gallery" }, ...pictures)),
  ];
}

function curve(found, player, seek) {
  const { seconds, importance } = found.samples;
  const low = Math.min(...importance), span = Math.max(...importance) - low || 1;
  const length = found.stop - found.start || 1;
  const x = (time) => (1000 * (time - found.start)) / length;
  const y = (value) => 92 - (84 * (value - low)) / span;
  const points = seconds.map((time, at) => `${x(time).toFixed(1)},${y(importance[at]).toFixed(1)}`);
  const picture = draw("svg", { class: "curve", viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "slider", tabindex: 0,
    "aria-label": "Position in the video, over its importance", "aria-valuemin": found.start, "aria-valuemax": found.stop, "aria-valuenow": found.start });
  picture.append(
    draw("polygon", { class: "area", points: `${x(seconds[0])},100 ${points.join(" ")} ${x(seconds.at(-1))},100` }),
    draw("polyline", { class: "line", points: points.join(" ") }),
    ...found.keyframes.map((k) => draw("path", { class: "key", d: `M${x(k.seconds)} ${y(k.importance)}h0.01` })));
  const now = draw("line", { class: "now", y1: 0, y2: 100, x1: 0, x2: 0 });
  picture.append(now);
  const mark = () => {
    const time = Math.min(Math.max(player.currentTime, found.start), found.stop);
    now.setAttribute("x1", x(time));
    now.setAttribute("x2", x(time));
    picture.setAttribute("aria-valuenow", time.toFixed(1));
    picture.setAttribute("aria-valuetext", clock(time));
    if (!player.paused && picture.isConnected) requestAnimationFrame(mark);
  };
  for (const event of ["play", "timeupdate", "seeked"]) player.addEventListener(event, mark);
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    seek(found.start + (length * (event.clientX - box.left)) / box.width);
  });
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    seek(Math.min(Math.max(player.currentTime + step, found.start), found.stop));
  });
  return picture;
}

function showLabels(found) {
  const [[head, top]] = Object.entries(found.top);
  const verdict = make("section", { class: "card", "data-head": head },
    make("p", { class: "verdict" }, `${percent(top[0].probability)} ${top[0].name}`), guesses(top),
    make("p", { class: "small" }, `${found.video}, ${clock(found.stop)} long`));
  if (!found.features.length) return [verdict, make("p", { class: "small" }, "Its pictures are too small or too damaged to be measured.")];
  return [verdict, evidence(found)];
}

function evidence(found) {
  const known = Object.entries(found.reference);
  const rows = found.features.map((feature, at) => ({ ...feature, at }));
  const spread = rows.filter((row) => row.name.endsWith("_std"));
  const main = rows.filter((row) => !row.name.endsWith("_std"));
  const legend = known.map(([name, { videos }], place) =>
    make("span", { class: place ? "key-b" : "key-a" }, `${name}: mean ± deviation of ${videos} videos learned from`));
  const note = known.length ? make("p", { class: "legend small" }, ...legend, make("span", {}, "│ this video"))
    : make("p", { class: "small" }, "The videos that the model has learned from are not at hand: no comparison.");
  return make("section", { class: "card" }, make("h2", {}, "Measured in this video"), note,
    table(main, known, found.towards), make("details", {}, make("summary", {}, "How much each varies between frames"), table(spread, known, found.towards)));
}

function table(rows, known, towards) {
  const pulled = towards !== undefined;
  const head = ["Feature", "Value", "Unit", ...(pulled ? [`For ${towards}`] : []), ...(known.length ? ["Compared"] : [])];
  const classes = { Value: "number", [`For ${towards}`]: "number", Unit: "unit" };
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { class: classes[name] ?? null, scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {},
      make("th", { scope: "row", title: row.meaning }, plain(row.name).replace(/ (mean|std)$/, "")),
      make("td", { class: "number" }, number(row.value)),
      make("td", { class: "unit" }, row.unit === "1" ? "" : row.unit),
      pulled ? make("td", { class: "number", title: "What it adds to the model's score" }, (row.pull > 0 ? "+" : "−") + Math.abs(row.pull).toFixed(2)) : null,
      known.length ? make("td", { class: "strip" }, strip(row, known)) : null))));
}

function strip(row, known) {
  const ranges = known.map(([, { mean, sd }]) => [mean[row.at] - sd[row.at], mean[row.at] + sd[row.at]]);
  const all = [row.value, ...ranges.flat()];
  const low = Math.min(...all), span = Math.max(...all) - low || 1;
  const x = (value) => 2 + (96 * (value - low)) / span;
  const picture = draw("svg", { viewBox: "0 0 100 26", preserveAspectRatio: "none", "aria-hidden": true });
  ranges.slice(0, 2).forEach(([from, to], place) => {
    const y = ranges.length > 1 ? 8 + 10 * place : 13;
    picture.append(draw("path", { class: `range ${"ab"[place]}`, d: `M${x(from)} ${y}H${x(to) + 0.01}` }));
  });
  picture.append(draw("path", { class: "here", d: `M${x(row.value)} 1V25` }));
  return picture;
}

function modelCard(card, kind) {
  const pairs = (rows) => make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  const classes = Object.entries(card.classes).map(([head, { count, first }]) =>
    [`${plain(head)} (${count})`, first.join(", ") + (count > first.length ? ", …" : "")]);
  const metrics = Object.entries(card.metrics).map(([name, value]) => [name, typeof value === "number" ? number(value) : String(value)]);
  return make("article", { class: "card" }, make("h2", {}, `${card.name}, for ${kind.toLowerCase()}`), pairs(card.about),
    ...(classes.length ? [make("h3", {}, "Classes"), pairs(classes)] : []),
    make("h3", {}, "Measured on validation data"), metrics.length ? pairs(metrics) : make("p", { class: "small" }, "Nothing is recorded."),
    make("details", {}, make("summary", {}, "All settings"),
      make("div", { class: "settings", tabindex: 0 }, ...Object.entries(card.settings).map(([name, value]) => make("div", {}, `${name} = ${value}`)))));
}

/* One tab: a video goes out, an answer comes back. */
class Looking {
  constructor(tab, cards, limits) {
    this.tab = tab;
    this.panel = document.getElementById("looking").content.firstElementChild.cloneNode(true);
    this.limits = limits;
    this.find(".lead").textContent = TABS[tab].lead;
    this.find(".bounds").textContent = `up to ${(limits.size / 1e6).toLocaleString("en")} MB and ${(limits.seconds / 60).toLocaleString("en")} minutes`;
    cards.forEach((card, place) => this.find("select").append(make("option", { value: place }, card.name)));
    this.find(".choose").hidden = cards.length < 2;
    this.find(".stretch").hidden = tab === "labels";
    this.find("form").addEventListener("submit", (event) => event.preventDefault());
    const drop = this.find(".drop"), input = this.find(".file");
    input.addEventListener("change", () => { if (input.files[0]) this.send(input.files[0]); input.value = ""; });
    for (const event of ["dragover", "dragleave", "drop"]) {
      drop.addEventListener(event, (it) => { it.preventDefault(); drop.classList.toggle("over", event === "dragover"); });
    }
    drop.addEventListener("drop", (event) => { if (event.dataTransfer.files[0]) this.send(event.dataTransfer.files[0]); });
    if (tab === "actions") this.webcam = new Webcam(this);
  }

  find(selector) { return this.panel.querySelector(selector); }

  say(text, bad = false) {
    const status = this.find(".status");
    status.textContent = text;
    status.hidden = !text;
    status.classList.toggle("bad", bad);
  }

  show(...parts) { this.find(".found").replaceChildren(...parts); }

  send(file) {
    this.webcam?.stop();
    this.request?.abort();
    this.show();
    if (file.size > this.limits.size) {
      this.say(`${file.name}: has ${Math.round(file.size / 1e6)} MB, and this page takes up to ${this.limits.size / 1e6} MB: choose a part of it.`, true);
      return;
    }
    const form = this.find("form"), bar = this.find("progress");
    const query = new URLSearchParams({ name: file.name, model: form.model.value, start: form.start.value, stop: form.stop.value });
    const request = (this.request = new XMLHttpRequest());
    request.open("POST", `/api/${this.tab}?${query}`);
    request.responseType = "json";
    request.upload.onprogress = ({ loaded, total }) => { bar.value = loaded / total; };
    request.upload.onload = () => { bar.removeAttribute("value"); this.say(`Looking at ${file.name} …`); };
    request.onloadend = () => {
      if (request !== this.request) return;
      bar.hidden = true;
      this.find(".drop").classList.add("short");
      if (request.status === 200 && request.response) {
        this.say("");
        const show = { keyframes: showKeyframes, actions: showActions, labels: showLabels }[this.tab];
        this.show(...show(request.response, file));
      } else {
        this.say(request.response?.error ?? `${file.name}: the page does not answer: is it still running?`, true);
      }
    };
    bar.hidden = false;
    bar.value = 0;
    this.say(`Uploading ${file.name} …`);
    request.send(file);
  }
}

/* Pictures of the webcam go out as fast as they are answered for; what comes back is about the newest. */
class Webcam {
  constructor(looking) {
    this.looking = looking;
    this.button = looking.find(".webcam button");
    this.button.addEventListener("click", () => (this.stream ? this.stop() : this.start()));
    looking.find(".webcam").hidden = false;
  }

  async start() {
    const { looking } = this;
    looking.request?.abort();
    looking.request = null;
    looking.find("progress").hidden = true;
    if (!navigator.mediaDevices) {
      looking.say("Browsers give the webcam to https and localhost only: open this page through the ssh tunnel.", true);
      return;
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
    } catch (error) {
      looking.say(`The webcam cannot be used (${error.message}): connect one, and allow it for this page.`, true);
      return;
    }
    this.button.textContent = "Stop the webcam";
    looking.say("");
    this.video = make("video", { class: "live", autoplay: true, playsinline: true });
    this.video.muted = true;
    this.video.srcObject = this.stream;
    this.pace = make("p", { class: "pace small" }, "Waiting for the first answer …");
    this.answers = make("div");
    looking.show(make("div", {}, this.video, this.pace), this.answers);
    const socket = (this.socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/api/live?model=${looking.find("select").value}`));
    socket.onmessage = ({ data }) => this.hear(JSON.parse(data));
    socket.onopen = () => { this.timer = setInterval(() => this.send(), 1000 / LIVE_RATE); };
    socket.onclose = () => { if (socket === this.socket) { this.stop(); looking.say(this.reason ?? "The page no longer answers, or watches other webcams: try again later.", true); } };
  }

  send() {
    const { video, socket } = this;
    if (!video.videoWidth || socket.readyState !== WebSocket.OPEN || socket.bufferedAmount > 100_000) return;
    this.canvas ??= document.createElement("canvas");
    this.canvas.width = LIVE_WIDTH;
    this.canvas.height = Math.round((LIVE_WIDTH * video.videoHeight) / video.videoWidth);
    this.canvas.getContext("2d").drawImage(video, 0, 0, this.canvas.width, this.canvas.height);
    const taken = new ArrayBuffer(8);
    new DataView(taken).setFloat64(0, performance.now());
    this.canvas.toBlob((picture) => { if (picture && socket.readyState === WebSocket.OPEN) socket.send(new Blob([taken, picture])); }, "image/jpeg", 0.85);
  }

  hear(answer) {
    if (answer.error) { this.reason = answer.error; return; }
    this.answers.replaceChildren(heads(answer.top));
    const behind = Math.round(performance.now() - answer.sent);
    this.pace.textContent = `${behind} ms behind, ${answer.rate.toFixed(1)} answers/s, camera ${answer.camera_rate.toFixed(0)} pictures/s, ${answer.skipped} skipped`;
  }

  stop() {
    if (!this.stream) return;
    clearInterval(this.timer);
    this.stream.getTracks().forEach((track) => track.stop());
    const { socket } = this;
    this.stream = this.socket = null;
    socket?.close();
    this.video.remove();
    this.button.textContent = "Use the webcam";
  }
}

/* The page: tabs as the ARIA pattern has them. */
async function begin() {
  const page = await (await fetch("/api/page")).json();
  const list = document.getElementById("tabs"), panels = document.getElementById("panels");
  const real = Object.values(page.tabs.labels?.[0]?.classes ?? {}).some(({ first }) => [...first].sort().join() === "generated,real");
  if (real) Object.assign(TABS.labels, { title: "Real or generated", lead: "Whether a video was filmed or made by a network, and the measured evidence." });
  const made = Object.entries(page.tabs).map(([tab, cards]) => [tab, new Looking(tab, cards, page.limits).panel]);
  const cards = Object.entries(page.tabs).flatMap(([tab, several]) => several.map((card) => modelCard(card, TABS[tab].title)));
  made.push(["models", make("section", { role: "tabpanel", tabindex: -1 }, make("p", { class: "lead" }, TABS.models.lead), make("div", { class: "cards" }, ...cards))]);
  const tabs = made.map(([tab, panel]) => {
    panel.id = `panel-${tab}`;
    panel.setAttribute("aria-labelledby", `tab-${tab}`);
    return make("button", { role: "tab", type: "button", id: `tab-${tab}`, "aria-controls": panel.id }, TABS[tab].title);
  });
  const choose = (place) => {
    tabs.forEach((tab, at) => {
      tab.setAttribute("aria-selected", at === place);
      tab.tabIndex = at === place ? 0 : -1;
      made[at][1].hidden = at !== place;
    });
  };
  tabs.forEach((tab, at) => {
    tab.addEventListener("click", () => choose(at));
    tab.addEventListener("keydown", ({ key }) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[key];
      if (to === undefined) return;
      const next = (to + tabs.length) % tabs.length;
      choose(next);
      tabs[next].focus();
    });
  });
  list.append(...tabs);
  panels.append(...made.map(([, panel]) => panel));
  choose(0);
}

for (const event of ["dragover", "drop"]) document.addEventListener(event, (it) => it.preventDefault()); // a missed drop opens no file
begin();
