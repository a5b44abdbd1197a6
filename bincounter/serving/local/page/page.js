// Photos go to /invocations a few at a time; where the model looked is asked for when a photo is on screen.
const AT_ONCE = 4, TRIES = 6, LIKELY = 0.8, SURE = 0.5;
const element = id => document.getElementById(id);
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
const photos = [];
let shown = null, explaining = Promise.resolve();

// The token of a server that takes one: from the fragment of the address, which is sent nowhere, else typed in.
const fragment = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));  // a plus is no space here
let token = fragment.get("token") ?? sessionStorage.getItem("token") ?? "";
if (location.hash) history.replaceState(null, "", location.pathname);

function ask(path, options = {}) {
  return fetch(path, token ? { ...options, headers: { ...options.headers, Authorization: `Bearer ${token}` } } : options);
}

async function post(path, file) {
  for (let left = TRIES; ; left--) {
    let reply = null;
    try {
      // What the photo is, the server sees better than a file's name.
      reply = await ask(path, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    } catch {
      // A worker that dies resets what it has in hand; the next request waits for the next worker.
      if (left < TRIES) throw new Error("The server does not answer; start it again and reload this page.");
    }
    if (reply) {
      const answer = await reply.json();
      if (reply.ok) return answer;
      if (reply.status !== 503 || left <= 1) throw new Error(answer.error);
    }
    await new Promise(resolve => setTimeout(resolve, 1000));
  }
}

function add(files) {
  const added = [...files].map(file => ({ file, name: file.name, url: URL.createObjectURL(file) }));
  if (!added.length) return;
  for (const photo of added) {
    element("list").append(listed(photo));
    photo.row = element("counts").tBodies[0].insertRow();
    tabulate(photo);
  }
  photos.push(...added);
  element("photos").hidden = element("table").hidden = photos.length < 2;
  element("photos-title").textContent = `${photos.length} photos`;
  show(added[0]);
  const waiting = added.values();
  for (let i = 0; i < AT_ONCE; i++) work(waiting);
}

async function work(waiting) {
  for (const photo of waiting) {
    const started = performance.now();
    try {
      photo.answer = await post("/invocations", photo.file);
      photo.milliseconds = performance.now() - started;
    } catch (error) {
      photo.sentence = error.message;
    }
    photo.said.textContent = photo.answer ? photo.answer.count : "–";
    tabulate(photo);
    photo.button.setAttribute("aria-label", `${photo.name}: ${photo.sentence ?? photo.answer.count}`);
    if (photo === shown) show(photo);
  }
}

// The fewest neighbouring counts whose probabilities sum up to LIKELY.
function range({ probabilities }) {
  const counts = Object.keys(probabilities).map(Number), shares = Object.values(probabilities);
  let best = null;
  for (let first = 0; first < shares.length; first++) {
    for (let last = first, sum = 0; last < shares.length; last++) {
      sum += shares[last];
      const wider = best && last - first - best.span;
      if (sum >= LIKELY - 1e-9 && (!best || wider < 0 || (wider === 0 && sum > best.sum))) {
        best = { low: counts[first], high: counts[last], sum, span: last - first };
      }
    }
  }
  return best ?? { low: counts[0], high: counts.at(-1), sum: 1, span: counts.length - 1 };
}

const sureness = ({ count, probabilities }) => probabilities[count];

function between({ low, high }) {
  return low === high ? String(low) : `${low} to ${high}`;
}

function tabulate({ row, name, answer, sentence }) {
  const head = document.createElement("th"), cells = answer
    ? [answer.count, percent(sureness(answer), 0), between(range(answer)), answer.expected_count.toFixed(2)]
    : [sentence ?? "…"];
  head.scope = "row";
  head.className = "text";
  head.textContent = name;
  row.replaceChildren(head);
  for (const content of cells) row.insertCell().textContent = content;
  if (!answer) Object.assign(row.cells[1], { colSpan: 4, className: "text" });
}

function save() {
  const lines = [["photo", "count", "probability", "low", "high", "probability_of_range", "expected_count", "problem"]];
  for (const { name, answer, sentence } of photos) {
    const likely = answer && range(answer);
    lines.push(answer
      ? [name, answer.count, sureness(answer), likely.low, likely.high, likely.sum.toFixed(6), answer.expected_count, ""]
      : [name, "", "", "", "", "", "", sentence ?? "not counted yet"]);
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.map(line => line.map(cell).join(",") + "\r\n").join("")], { type: "text/csv" }));
  link.download = "counts.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Spreadsheets compute what begins like a formula; an apostrophe in front makes it text.
function cell(value) {
  const text = typeof value === "string" ? value.replace(/^(?=['=+\-@\t\r\n＝＋－＠])/, "'") : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function listed(photo) {
  const item = document.createElement("li");
  photo.button = document.createElement("button");
  photo.button.type = "button";
  photo.said = document.createElement("strong");
  photo.said.textContent = "…";
  const image = picture(document.createElement("img"), photo), line = document.createElement("span"), name = document.createElement("small");
  name.textContent = photo.name;
  line.append(photo.said, name);
  photo.button.append(image, line);
  photo.button.addEventListener("click", () => show(photo));
  item.append(photo.button);
  return item;
}

function picture(image, photo) {
  image.hidden = false;
  image.onerror = () => { image.hidden = true; };
  image.onload = () => image.parentElement.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  image.alt = "";
  image.src = photo.url;
  return image;
}

function show(photo) {
  if (photo !== shown) {
    picture(element("photo"), photo).alt = photo.name;
    for (const other of photos) other.button.setAttribute("aria-current", other === photo);
  }
  shown = photo;
  element("result").hidden = false;
  element("of").textContent = photo.name;
  const { answer } = photo, count = element("count");
  count.classList.toggle("sentence", !answer);
  count.textContent = answer ? answer.count : photo.sentence ?? "Counting …";
  if (answer) count.append(small(answer.count === 1 ? " item" : " items"));
  count.classList.toggle("unsure", Boolean(answer) && (answer.needs_person ?? sureness(answer) < SURE));
  element("sure").textContent = answer ? sentenceOf(answer) : "";
  element("expected").textContent = answer ? `Expected count ${answer.expected_count.toFixed(2)}` : "";
  element("took").textContent = answer ? `Answered in ${photo.milliseconds.toFixed(0)} ms.` : "";
  element("probabilities").hidden = !answer;
  if (answer) element("probabilities").tBodies[0].replaceChildren(...rows(answer));
  if (answer && !photo.looked) explain(photo);
  light(photo);
}

function sentenceOf(answer) {
  const { low, high, sum, span } = range(answer), sure = `${answer.needs_person ? "Needs a person: " : ""}${percent(sureness(answer), 0)} sure`;
  if (!span) return `${sure}.`;
  if (span === Object.keys(answer.probabilities).length - 1) return `${sure}; any count from ${low} to ${high} is possible.`;
  return `${sure}; ${percent(sum, 0)} likely between ${low} and ${high}.`;
}

function small(text) {
  const node = document.createElement("small");
  node.textContent = text;
  return node;
}

function rows({ count, probabilities }) {
  return Object.entries(probabilities).map(([of, probability]) => {
    const row = document.createElement("tr"), name = document.createElement("th");
    row.className = Number(of) === count ? "likely" : "";
    name.scope = "row";
    name.textContent = of;
    const meter = row.insertCell(), value = row.insertCell(), track = document.createElement("span"), bar = document.createElement("i");
    meter.className = "meter";
    meter.setAttribute("aria-hidden", "true");
    bar.style.width = `${100 * probability}%`;
    track.append(bar);
    meter.append(track);
    value.textContent = percent(probability);
    row.prepend(name);
    return row;
  });
}

function explain(photo) {
  photo.looked = "Finding out where it looked …";
  explaining = explaining.then(async () => {
    try {
      const { count, width, height, heat } = await post("/explanation", photo.file);
      const values = Uint8Array.from(atob(heat), letter => letter.charCodeAt(0)), any = values.some(value => value);
      photo.heat = any ? { width, height, values } : null;
      photo.looked = any ? `What is lit spoke for ${count}.` : `No place in the photo spoke for ${count}.`;
    } catch (error) {
      photo.looked = error.message;
    }
    if (photo === shown) light(photo);
  });
}

function light({ heat, looked }) {
  element("slider").hidden = !heat;
  element("looked").textContent = looked ?? "";
  const canvas = element("heat"), { width, height } = heat ?? { width: 1, height: 1 };
  canvas.width = width;
  canvas.height = height;
  if (!heat) return;
  const shade = new ImageData(width, height);
  // A shadow wherever it did not look, so that the photo keeps its colours where it did.
  heat.values.forEach((value, place) => { shade.data[4 * place + 3] = 255 * (1 - (value / 255) ** 0.7); });
  canvas.getContext("2d").putImageData(shade, 0, 0);
}

function dim() {
  element("heat").style.opacity = element("strength").value / 100;
}

function answerable(counts) {
  const [first, last] = [counts[0], counts.at(-1)];
  return last - first === counts.length - 1 ? `${first} to ${last}` : counts.join(", ");
}

function about({ name, counts, image_size, precision, limits, task_name, scores }) {
  element("model").textContent = name;
  const facts = {
    "Counts it can answer": answerable(counts),
    "Reads photos at": `${image_size} × ${image_size} pixels, ${precision}`,
    ...(task_name ? { "Task": task_name } : {}),
    ...scores,
    "Limits": `${limits.max_body_bytes / 1e6} MB and ${limits.max_instances} photos a request, ${limits.max_queue} requests at a time`,
  };
  for (const [term, fact] of Object.entries(facts)) {
    const key = document.createElement("dt"), value = document.createElement("dd");
    key.textContent = term;
    value.textContent = fact;
    element("about").append(key, value);
  }
  element("caution").textContent =
    `It has learnt bins as they were photographed for it. It says a count from ${counts[0]} to ${counts.at(-1)} of any photo, also where no bin is to be seen.`;
}

element("files").addEventListener("change", event => { add(event.target.files); event.target.value = ""; });
element("strength").addEventListener("input", dim);
element("save").addEventListener("click", save);
document.addEventListener("paste", event => add(event.clipboardData.files));
document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dragging"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  add(event.dataTransfer.files);
});
async function open() {
  const reply = await ask("/model");
  element("login").hidden = reply.status !== 401;
  element("drop").hidden = !element("login").hidden;
  if (reply.status === 401) {
    element("wrong").textContent = token ? "That is not the token of this server." : "";
    element("token").focus();
    return;
  }
  if (token) sessionStorage.setItem("token", token);
  about(await reply.json());
}

element("login").addEventListener("submit", event => {
  event.preventDefault();
  token = element("token").value.trim();
  open();
});
dim();
await open();
