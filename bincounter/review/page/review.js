// One bin at a time: the server leases it, and has each answer on its disk before it sends the next.
const LONGEST = 6, CLOSEST = 6, STEP = 2.5;  // digits of a count; largest and usual enlargement of the photo
const RENEWAL = 60_000;  // ms between signs of life, so that a bin on screen is shown on no other
const element = id => document.getElementById(id);
const percent = share => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
const session = sessionStorage.getItem("session") ?? Array.from(crypto.getRandomValues(new Uint8Array(12)), byte => byte.toString(16).padStart(2, "0")).join("");
// Stored while the page is left alone: a reload is the same session, and the copy of an open tab is another one.
const forget = () => sessionStorage.removeItem("session");
forget();
addEventListener("pageshow", forget);  // the page of an earlier step of the history
addEventListener("pagehide", () => sessionStorage.setItem("session", session));
const nickname = `reviewer-${session.slice(0, 4)}`;
let bin = null, typed = "", busy = false;
let settled = false;  // the photo of this bin is on screen, or the page says why there is none

async function send(action, more = {}) {
  const body = JSON.stringify({ session, reviewer: element("reviewer").value.trim() || nickname, ...more });
  const reply = await fetch(`/${action}`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  return [reply, await reply.json()];
}

async function ask(action, more) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    let [reply, answer] = await send(action, more);
    complain(reply.ok ? "" : answer.error);
    // Somebody else has counted this bin: the next is shown, and the sentence stays on screen.
    if (reply.status === 409 && action === "answer") [reply, answer] = await send("next");
    if (reply.ok) show(answer);
  } catch {
    complain("The server does not answer, and nothing of yours is lost: start it again, then repeat the last step.");
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
}

async function renew() {
  if (!bin || busy) return;
  const { id, bin: name, photo } = bin;
  try {
    const [reply, { held }] = await send("renew", { id });
    if (!reply.ok || held || busy || bin?.id !== id) return;
    await ask("next");
    if (bin?.id !== id) complain(`Bin ${name || photo} is with somebody else by now, or counted by them: please count the one shown now.`);
  } catch { /* the server is gone, which the next answer reports */ }
}

function complain(sentence) {
  element("message").textContent = sentence;
  element("message").hidden = !sentence;
}

function show(answer) {
  const { progress } = answer, left = progress.bins - progress.done;
  element("table").textContent = `Review of ${progress.table}`;
  const { wrong, wrong_judged } = progress, expected = progress.wrong_expected.toFixed(1);
  const judged = wrong === wrong_judged ? `${expected} expected` : `${wrong_judged} of them in judged bins, where ${expected} were expected`;
  const found = `${wrong} wrong ${wrong === 1 ? "record" : "records"} found, ${judged}`;
  element("done").textContent = `${progress.done} of ${progress.bins} bins done${progress.done ? `: ${found}` : ""}`;
  element("progress").max = progress.bins;
  element("progress").value = progress.done;
  element("wrong").textContent = wrong;
  element("missing").textContent = progress.missing;
  element("extra").textContent = progress.extra;
  element("look").hidden = !progress.explained;
  element("bin").hidden = !answer.bin;
  element("over").hidden = Boolean(answer.bin);
  element("over-title").textContent = left ? "The rest is with other reviewers" : "All bins are done";
  element("over-text").textContent = left
    ? `${left === 1 ? "One bin is" : `${left} bins are`} on the screens of others. A bin comes back some minutes after the page that shows it is closed.`
    : `${found}. The answers are in ${progress.answers}.`;
  element("again").hidden = !left;
  if (answer.bin?.id === bin?.id) return;
  bin = answer.bin;
  type("");
  if (bin) display(bin);
  light();
}

function display(bin) {
  element("title").textContent = `Bin ${bin.bin || bin.photo}`;
  element("name").textContent = bin.photo;
  element("expected").textContent = bin.record || "–";
  element("predicted").textContent = bin.predicted ?? "–";
  element("verdict").textContent = verdict(bin);
  const shares = Object.entries(bin.probabilities);
  element("shares").hidden = !shares.length;
  element("shares").tBodies[0].replaceChildren(...shares.map(([count, share]) => row(bin, Number(count), share)));
  element("notes").replaceChildren(...Object.entries(bin.notes).flatMap(([term, note]) => [text("dt", term), text("dd", note)]));
  const photo = element("photo");
  zoom(1);
  // An image keeps its last photo until the next is loaded: that of another bin must not be counted for this one.
  settled = false;
  photo.hidden = true;
  remark("The photo is loading …");
  photo.alt = `Photo of bin ${bin.bin || bin.photo}`;
  photo.src = `/photo/${bin.id}`;
}

function remark(sentence) {
  element("no-photo").textContent = sentence;
  element("no-photo").hidden = !sentence;
}

function verdict({ record_wrong, direction, units_off, reason }) {
  if (reason) return `Not judged: ${reason}.`;
  const off = units_off === null ? "" : `, ${units_off < 0 ? "" : "+"}${units_off.toFixed(1)} on average`;
  const likely = direction ? ` Likely error: items ${direction}${off}.` : "";
  return `Probability that the record is wrong: ${percent(record_wrong)}.${likely}`;
}

// Where the model looked: asked for when a bin is on screen, and kept on for the next bins until it is switched off.
let looking = false, asked = new AbortController();

async function light() {
  asked.abort();
  asked = new AbortController();
  const canvas = element("heat"), { signal } = asked;
  canvas.hidden = true;
  element("attention").setAttribute("aria-pressed", looking);
  element("looked").textContent = looking ? "Finding out …" : "";
  if (!looking || !bin) return;
  try {
    const reply = await fetch(`/attention/${bin.id}`, { signal }), answer = await reply.json();
    if (!reply.ok) throw new Error(answer.error);
    await element("photo").decode();
    if (signal.aborted) return;
    shade(canvas, answer);
    element("looked").textContent = `What is lit spoke for ${answer.count}.`;
  } catch (error) {
    if (!signal.aborted) element("looked").textContent = error.message;
  }
}

function shade(canvas, { width, height, heat }) {
  const values = Uint8Array.from(atob(heat), letter => letter.charCodeAt(0)), small = document.createElement("canvas");
  Object.assign(small, { width, height });
  const dark = new ImageData(width, height);
  values.forEach((value, place) => { dark.data[4 * place + 3] = 255 * (1 - (value / 255) ** 0.7); });
  small.getContext("2d").putImageData(dark, 0, 0);
  const { naturalWidth, naturalHeight } = element("photo"), most = 800 / Math.max(naturalWidth, naturalHeight);
  Object.assign(canvas, { width: naturalWidth * most, height: naturalHeight * most, hidden: false });
  canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
}

function look() {
  looking = !looking;
  light();
}

function row({ predicted, expected }, count, share) {
  const row = document.createElement("tr"), meter = document.createElement("td"), track = document.createElement("span"), bar = document.createElement("i");
  const name = text("th", count);
  name.scope = "row";
  row.classList.toggle("likely", count === predicted);
  row.classList.toggle("recorded", count === expected);
  meter.className = "meter";
  meter.setAttribute("aria-hidden", "true");
  bar.style.width = `${100 * share}%`;
  track.append(bar);
  meter.append(track);
  row.append(name, meter, text("td", percent(share)));
  return row;
}

function text(kind, content) {
  const node = document.createElement(kind);
  node.textContent = content;
  return node;
}

function type(digits) {
  typed = digits;
  element("counted").textContent = digits;
}

function press(key) {
  if (busy) return;
  if (key === "u") ask("undo");
  else if (!bin) return;
  else if (/^[0-9]$/.test(key)) type((typed === "0" ? key : typed + key).slice(0, LONGEST));
  else if (key === "Backspace") type(typed.slice(0, -1));
  else if (key === "l") { if (!element("look").hidden) look(); }
  else if (key === "s") ask("skip", { id: bin.id });
  else if (key === "Enter" && !settled) complain("Wait for the photo of this bin, then press Enter.");
  else if (key === "Enter" && typed) ask("answer", { id: bin.id, counted: Number(typed) });
  else if (key === "Enter") complain("Type the count first, then press Enter.");
}

// Enlargement of the photo: scale, and where its upper left corner lies, in CSS pixels of the stage.
let scale = 1, left = 0, top_ = 0, drag = null;

function zoom(to, x = 0, y = 0) {
  const stage = element("stage"), before = scale;
  scale = Math.min(Math.max(to, 1), CLOSEST);
  left = x - (x - left) * scale / before;
  top_ = y - (y - top_) * scale / before;
  move(0, 0);
  stage.classList.toggle("large", scale > 1);
}

function move(right, down) {
  const { clientWidth, clientHeight } = element("stage");
  left = Math.min(0, Math.max(left + right, clientWidth * (1 - scale)));
  top_ = Math.min(0, Math.max(top_ + down, clientHeight * (1 - scale)));
  for (const layer of ["photo", "heat"]) element(layer).style.transform = `translate(${left}px, ${top_}px) scale(${scale})`;
}

function place(event) {
  const { left, top } = element("stage").getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
}

element("stage").addEventListener("wheel", event => {
  event.preventDefault();
  zoom(scale * Math.exp(-event.deltaY / 400), ...place(event));
}, { passive: false });
element("stage").addEventListener("pointerdown", event => { drag = { x: event.clientX, y: event.clientY, moved: false }; });
element("stage").addEventListener("pointermove", event => {
  if (!drag || scale === 1) return;
  const right = event.clientX - drag.x, down = event.clientY - drag.y;
  if (!drag.moved && Math.hypot(right, down) < 4) return;
  drag = { x: event.clientX, y: event.clientY, moved: true };
  element("stage").setPointerCapture(event.pointerId);
  move(right, down);
});
element("stage").addEventListener("pointerup", event => {
  if (drag && !drag.moved) zoom(scale > 1 ? 1 : STEP, ...place(event));
  drag = null;
});
element("stage").addEventListener("pointercancel", () => { drag = null; });

element("photo").addEventListener("load", () => {
  settled = true;
  element("photo").hidden = false;
  remark("");
});
element("photo").addEventListener("error", async () => {
  const failed = element("photo").src;
  settled = true;
  remark("The photo is not shown.");
  try {
    const reply = await fetch(failed), sentence = reply.ok ? "" : (await reply.json()).error;
    if (sentence && element("photo").src === failed) remark(sentence);
  } catch { /* the server is gone, which the next answer reports */ }
});

for (const group of ["keys", "others"]) {
  element(group).addEventListener("mousedown", event => {
    event.preventDefault();  // the button takes no focus, so that Enter stays with the count
    element("reviewer").blur();
  });
  element(group).addEventListener("click", event => {
    const key = event.target.closest("button")?.dataset.key;
    if (key) press(key);
  });
}
element("attention").addEventListener("click", look);
element("attention").addEventListener("mousedown", event => event.preventDefault());
element("again").addEventListener("click", () => ask("next"));
element("undo").addEventListener("click", () => ask("undo"));
element("answer").addEventListener("submit", event => event.preventDefault());
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === element("reviewer")) {
    if (event.key === "Enter") event.target.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Enter" && event.target.closest("button")) return;  // the button's own
  if (!/^([0-9lsu]|Enter|Backspace)$/.test(key)) return;
  event.preventDefault();
  press(key);
});
element("reviewer").value = localStorage.getItem("reviewer") ?? "";
element("reviewer").placeholder = nickname;
element("reviewer").addEventListener("input", event => localStorage.setItem("reviewer", event.target.value.trim()));
setInterval(renew, RENEWAL);
await ask("next");
