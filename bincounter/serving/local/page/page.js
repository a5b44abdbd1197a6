// Photos go to /invocations a few at a time; where the model looked is asked for when a photo is on screen.
const AT_ONCE = 4, TRIES = 6;
const element = id => document.getElementById(id);
const percent = value => `${(100 * value).toFixed(1)} %`;
const photos = [];
let shown = null, explaining = Promise.resolve();

async function post(path, file) {
  for (let left = TRIES; ; left--) {
    let reply = null;
    try {
      // What the photo is, the server sees better than a file's name.
      reply = await fetch(path, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
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
  for (const photo of added) element("list").append(listed(photo));
  photos.push(...added);
  element("photos").hidden = photos.length < 2;
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
    photo.button.setAttribute("aria-label", `${photo.name}: ${photo.sentence ?? photo.answer.count}`);
    if (photo === shown) show(photo);
  }
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
  element("expected").textContent = answer ? `Expected count ${answer.expected_count.toFixed(2)}` : "";
  element("took").textContent = answer ? `Answered in ${photo.milliseconds.toFixed(0)} ms.` : "";
  element("probabilities").hidden = !answer;
  if (answer) element("probabilities").tBodies[0].replaceChildren(...rows(answer));
  if (answer && !photo.looked) explain(photo);
  light(photo);
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
document.addEventListener("paste", event => add(event.clipboardData.files));
document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dragging"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  add(event.dataTransfer.files);
});
dim();
about(await (await fetch("/model")).json());
