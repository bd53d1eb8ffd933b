"use strict";
// Everything that comes from data is put in as text, never as markup.

const byId = (id) => document.getElementById(id);
const NOBODY = { user_id: null, recent: [], features: {} };
const BUSY = "aria-busy";
const BARS = "Blue bars: what a reason adds to the score.";
const RHYTHM = " Green bars: how much of the usual time between two events has passed.";
const DIALS = ["diversity", "novelty"];
const PACE = /^(?!.* used to ).* every /; // sentences that tell a rhythm which still holds
const NARROW = matchMedia("(max-width: 60rem)");

let key = null; // of the service, in this variable only
let form = null; // what the service offers
let who = NOBODY;
let taken = []; // items that were added here, oldest first
let dismissed = []; // of somebody whom the service does not know
let last = null; // the list that is shown, with what was asked
let asked = 0; // requests so far: only the answer to the last one is drawn

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

// A reader of the screen hears what is seen, then which item it is about.
const button = (text, about, act) => {
  const made = make("button", { type: "button", onclick: act }, text);
  made.setAttribute("aria-label", `${text}: ${about}`);
  return made;
};

// ---- the service

// Integers that a number cannot hold exactly stay texts: an id rounded is another item; the service takes either form.
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g;
const kept = (token) => /^-?\d+$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${token}"` : token;
const readJson = (text) => JSON.parse(text.replace(TOKEN, kept));

async function call(path, body) {
  const headers = key === null ? {} : { authorization: `Bearer ${key}` };
  const given = body === undefined ? { headers } : {
    method: "POST",
    headers: { ...headers, "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  const reply = await fetch(path, given).catch(() => { throw new Error("The service does not answer. Does it still run?"); });
  const answer = readJson(await reply.text());
  if (reply.status === 401) {
    byId("key-form").hidden = false;
    throw new Error(key === null ? "" : "The service does not know this key.");
  }
  if (!reply.ok) throw new Error(answer.error.message);
  return answer;
}

const attempt = (act) => async (...given) => {
  byId("error").textContent = "";
  await act(...given).catch((error) => { byId("error").textContent = error.message; });
};

// ---- words

const isShown = (value) => value !== null && value !== "" && typeof value !== "boolean";
const asText = (value) => (Array.isArray(value) ? value.join(", ") : String(value)).replace(/^(.{80}).+$/s, "$1…");
const inWords = (name) => name.replaceAll("_", " ");
const asNumber = (value) => Number(value).toLocaleString("en", { maximumFractionDigits: 2, useGrouping: false });
const asValue = (value) => Array.isArray(value) || Number.isNaN(Number(value)) ? asText(value) : asNumber(value);
const idOf = (item) => String(item.item_id);
const nameOf = (item) => item.called ?? (form.names.map((name) => item.columns[name]).filter(isShown).map(asText).join(" · ") || `item ${item.item_id}`);

const inRow = (parts) => parts.flatMap((part, place) => place ? [" · ", part] : [part]);
const label = ([name, value]) => make("span", {}, make("span", { className: "label" }, inWords(name)), ` ${asValue(value)}`);

function labelKind(item) {
  const rest = Object.entries(item.columns).filter(([name, value]) => !form.names.includes(name) && isShown(value));
  return rest.slice(0, 5).map(label);
}

// Items of one name get a column that differs between them, else their id.
function tellApart(items) {
  const groups = Object.values(Object.groupBy(items, nameOf)).filter((group) => group.length > 1);
  for (const group of groups) {
    const differing = Object.keys(group[0].columns).find((name) => new Set(group.map((one) => String(one.columns[name]))).size === group.length);
    for (const item of group) item.called = `${nameOf(item)} · ${differing ? `${inWords(differing)} ${asValue(item.columns[differing])}` : `id ${item.item_id}`}`;
  }
  return items;
}

// The verb of the event that a button logs: "bought {}" says "Bought it", "because they bought it", "what they bought".
// An event that has no verb, "Kauf: {}", is called by its own name on the button, and "took" in sentences.
const OWN_NAME = /: {}$/;
const verb = () => form.verbs[byId("event").value] ?? form.verb;
const spoken = (words) => words.replace(/^.*: {}$/, "took {}");
const didIt = (word = "it") => spoken(verb()).replace("{}", word);
const asButton = () => verb().replace(OWN_NAME, "").replace("{}", "it").replace(/^./, (letter) => letter.toUpperCase());

const SHOWN = { dateStyle: "medium", timeStyle: "short" };
const dayOf = (seconds) => new Date(seconds * 1000).toLocaleString("en-GB", { ...SHOWN, timeZone: form.timezone || "UTC" });
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

// ---- the form

function drawPeople() {
  byId("people").replaceChildren(...[...form.users, NOBODY].map((one) => {
    const facts = one === NOBODY
      ? [`say what they ${spoken(form.verb).replace(" {}", "")}, and who they are`]
      : inRow([count(one.events, "event"), ...Object.entries(one.features).slice(0, 3).map(label)]);
    const radio = make("input", { type: "radio", name: "who", person: one, onchange: () => choose(one) });
    return make("label", { className: "person" }, radio, one === NOBODY ? "Somebody new" : `User ${one.user_id}`, make("small", {}, ...facts));
  }));
}

function choose(person) {
  [who, taken, dismissed, last] = [person, [], [], null];
  for (const radio of byId("people").querySelectorAll("input")) {
    radio.checked = radio.person === person;
    if (radio.checked) byId("people").scrollLeft = radio.closest("label").offsetLeft - byId("people").offsetLeft;
  }
  byId("user").value = person === NOBODY || form.users.includes(person) ? "" : person.user_id;
  drawTaken();
  drawFeatures();
  return ask();
}

function drawTaken() {
  const isKnown = who.user_id !== null;
  const rows = taken.map((one, place) => make("li", {}, one.name, isKnown ? "" : button("Remove", one.name, () => {
    taken.splice(place, 1);
    drawTaken();
    ask();
  })));
  byId("taken").replaceChildren(...rows.reverse(), ...who.recent.map((name) => make("li", {}, name)));
  byId("taken-note").textContent = taken.length || who.recent.length ? "latest first" : isKnown ? "" : "nothing yet";
}

async function search() {
  const text = byId("search").value.trim();
  const answer = text ? await call(`/v1/items?k=6&search=${encodeURIComponent(text)}`) : { items: [] };
  if (text !== byId("search").value.trim()) return;
  byId("found").replaceChildren(...tellApart(answer.items).map((item) => make("li", {}, make("button", { type: "button", onclick: () => {
    byId("search").value = "";
    byId("found").replaceChildren();
    byId("search").focus();
    take(item);
  } }, nameOf(item), " ", make("small", {}, ...inRow(labelKind(item)))))));
  if (text && !answer.items.length) byId("found").replaceChildren(make("li", {}, "No item has these words."));
}

const DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const CLOCK = {
  hour_of_day: [...Array(24).keys()].map((hour) => `${hour}:00`),
  day_of_week: DAYS,
  month_of_year: MONTHS,
  week_of_year: [...Array(53).keys()].map((week) => `week ${week + 1}`),
};

function field(feature, side, known) {
  const isTime = feature.kind in CLOCK;
  const labels = CLOCK[feature.kind] ?? feature.values;
  const empty = isTime ? "as it is" : known === undefined ? "not said" : `as known: ${known}`;
  const options = labels.map((label, index) => make("option", { value: isTime ? index : label }, label));
  const input = labels.length
    ? make("select", {}, make("option", { value: "" }, empty), ...options)
    : make("input", { type: feature.kind === "numeric" ? "number" : "text", step: "any", placeholder: empty });
  input.id = `${side} ${feature.name}`;
  Object.assign(input.dataset, { side, name: feature.name, kind: feature.kind });
  input.addEventListener("change", ask);
  return make("div", {}, make("label", { htmlFor: input.id }, inWords(feature.name)), input);
}

function drawFeatures() {
  const isFree = who === NOBODY || form.clock === "now"; // else what they take now would come after the moment
  const about = form.features.filter((one) => one.kind !== "vector").map((one) => field(one, "features", who.features[one.name]));
  const moment = form.context.filter((one) => one.kind !== "vector" && (isFree || !(one.kind in CLOCK)));
  byId("features").replaceChildren(...about, ...moment.map((one) => field(one, "context")));
  byId("details").hidden = !byId("features").hasChildNodes();
}

function readClock(format, at) {
  const { year, month, day, hour, weekday } = Object.fromEntries(format.formatToParts(at * 1000).map((part) => [part.type, part.value]));
  const dayOfYear = (Date.UTC(year, month - 1, day) - Date.UTC(year, 0, 1)) / 86400000;
  return { hour_of_day: Number(hour), day_of_week: DAYS.indexOf(weekday), month_of_year: month - 1, week_of_year: Math.floor(dayOfYear / 7) };
}

function nextMoment(from, wanted) {
  // Step to the next quarter of an hour that the clocks of the data's zone show so, by days where the season is another.
  const shown = { timeZone: form.timezone || "UTC", year: "numeric", month: "numeric", day: "numeric", hour: "numeric", hourCycle: "h23", weekday: "long" };
  const format = new Intl.DateTimeFormat("en-US", shown);
  const fits = (at, kinds) => {
    const here = readClock(format, at);
    return kinds.every((kind) => !(kind in wanted) || here[kind] === wanted[kind]);
  };
  const season = ["month_of_year", "week_of_year"];
  const end = from + 2 * 366 * 86400;
  for (let at = Math.ceil(from / 900) * 900; at < end;) {
    if (fits(at, Object.keys(CLOCK))) return at;
    at += fits(at, season) || fits(at + 86400, season) ? 900 : 86400;
  }
  throw new Error("No moment of the next two years is so: choose another week, month or day.");
}

function readForm() {
  const body = { k: Number(byId("k").value), explain: true };
  for (const name of DIALS) if (Number(byId(name).value)) body[name] = Number(byId(name).value);
  const wanted = {};
  for (const input of byId("features").querySelectorAll("[data-side]")) {
    const { side, name, kind } = input.dataset;
    if (input.value === "") continue;
    if (kind in CLOCK) wanted[kind] = Number(input.value);
    else (body[side] ??= {})[name] = kind === "numeric" ? Number(input.value) : input.value;
  }
  if (body.features && who.user_id !== null) body.features = { ...who.features, ...body.features };
  if (Object.keys(wanted).length) body.datetime = nextMoment(form.moment, wanted);
  if (byId("only-new").checked) body.repeats = "exclude";
  if (byId("again").checked) body.again = "any";
  if (byId("where").value.trim()) body.filters = { where: byId("where").value.trim() };
  if (byId("no-profile").checked) {
    delete body.features;
    return { ...body, profile: false, exclude: dismissed };
  }
  if (who.user_id !== null) return { ...body, user_id: who.user_id };
  return { ...body, history: taken.map((one) => ({ item_id: one.item_id })), exclude: dismissed };
}

// ---- the list

async function ask() {
  const number = asked += 1;
  byId("list").setAttribute(BUSY, "true");
  try {
    const body = readForm();
    const about = ["k", "explain", "datetime", "context"].filter((name) => name in body).map((name) => [name, body[name]]);
    const [answer, popular] = await Promise.all([call("/v1/recommend", body), call("/v1/recommend", Object.fromEntries(about))]);
    if (number !== asked) return;
    byId("error").textContent = "";
    draw(answer, popular.answers[0].items);
  } catch (error) {
    if (number === asked) byId("error").textContent = error.message;
  } finally {
    if (number === asked) byId("list").setAttribute(BUSY, "false");
  }
}

function draw(answer, popular) {
  const [list] = answer.answers;
  [list.items, popular].forEach(tellApart);
  const here = new Set(list.items.map(idOf));
  const rankOf = new Map(last === null ? [] : last.items.map((item) => [idOf(item), item.rank]));
  const placeOf = new Map(popular.map((item) => [idOf(item), item.rank]));
  for (const item of list.items) { // places that it rose; NaN if it was not there
    item.rise = last === null ? 0 : (rankOf.get(idOf(item)) ?? NaN) - item.rank;
    item.popular = placeOf.get(idOf(item));
  }
  const strongest = Math.max(...list.items.flatMap((item) => (item.reasons ?? []).map((one) => one.effect)), 1e-9);
  const held = document.activeElement.dataset.held;
  byId("list").replaceChildren(...list.items.map((item) => drawItem(item, strongest)));
  if (held) ([...byId("list").querySelectorAll("button")].find((one) => one.dataset.held === held) ?? byId("list-title")).focus();
  byId("list-title").textContent = describeTitle();
  drawGroup(list.user_known === false || isBlank() ? null : list.segment);
  drawAbout(list);
  drawHeldBack(list.held_back ?? 0);
  byId("notes").replaceChildren(...describePerson(list).map((text) => make("span", {}, text)));
  const nameMissing = (items) => items.filter((item) => !here.has(idOf(item))).map(nameOf).join("; ");
  byId("gone").textContent = last && nameMissing(last.items) ? `No longer here: ${nameMissing(last.items)}.` : "";
  const others = nameMissing(popular.filter((item) => !taken.some((one) => idOf(one) === idOf(item))));
  byId("others").textContent = others ? `Popular, but not for them: ${others}.` : "";
  byId("said").textContent = describeChange(list.items, popular.length);
  const moment = list.moment ? dayOf(list.moment) + (answer.clock === "data" ? ", the end of the data" : "") : "now";
  byId("facts").textContent = `Asked for ${moment}. Answered in ${Math.round(answer.latency_ms)} ms by version ${answer.version}. ${BARS}${form.repeats === "allow" ? RHYTHM : ""}`;
  last = { ...list, request_id: answer.request_id };
  form.moment = list.moment ?? form.moment;
}

function isBlank() { // nothing has been said about somebody new
  const body = readForm();
  return who.user_id === null && body.profile !== false && !(body.features || body.context || body.history.length || body.exclude.length);
}

// The main parameters of lists, and what the test of this version says of the parts (DSA, article 27).
const PARAMETERS = {
  memory: "what they take again and again",
  history: "what they did before",
  features: "what is said about them",
  context: "the moment and the place",
  popular: "what many people take now",
};
const PARTS = { popularity: "popularity alone", personal: "what they took before alone", ease: "what goes together alone" };
const asPercent = (share) => `${Math.round(100 * share)} %`;

function drawAbout(list) {
  const weighed = Object.entries(list.weights ?? {}).sort(([, one], [, other]) => other - one).map(([kind, weight]) => `${asPercent(weight)} ${PARAMETERS[kind]}`);
  byId("about-list").hidden = !weighed.length;
  byId("parameters").textContent = `What decides this list, by weight: ${weighed.join("; ")}. The bars beside the items show each reason. Another order, other items and a list without profiling can be chosen on this page.`;
  const quality = (name) => form.tested[name]?.all?.["NDCG@10"];
  const whole = quality("bascule");
  const parts = Object.entries(PARTS).filter(([name]) => quality(name)).map(([name, words]) => `${words} ${asPercent(quality(name) / whole)}`);
  byId("measured").textContent = whole && parts.length ? `In the test of this version, of the quality of whole lists (NDCG@10 ${whole.toFixed(3)}) lists by ${parts.join(", by ")} reached.` : "";
}

function describeTitle() {
  if (byId("no-profile").checked) return "Without profiling: what anybody gets";
  if (who.user_id !== null) return `What user ${who.user_id} would want`;
  return isBlank() ? "For somebody new, before anything is known" : "What this new person would want";
}

function drawGroup(segment) {
  byId("group").hidden = !segment;
  if (!segment) return;
  byId("group-size").textContent = `In a group of ${count(segment.size, "similar user")}`;
  byId("group-text").textContent = `Compared with all users: ${segment.text}.`;
}

function drawHeldBack(number) {
  const isTicked = byId("again").checked;
  byId("again-row").hidden = !number && !isTicked;
  const those = number === 1 ? "it" : "them";
  const counted = `${count(number, "item")} held back, because they just ${didIt(those)}. List ${those} too`;
  byId("held-back").textContent = isTicked ? `Also list what they just ${didIt("").replace(/ +/g, " ").trim()}` : counted;
}

function describePerson(list) {
  const words = [];
  if (list.profile === false) words.push("Made without personal data: nothing that is known about them was read, and nothing of this list is kept.");
  if (list.user_known === false) words.push("The service does not know this user (never seen, or forgotten): this is what a newcomer gets.");
  if (list.unknown_items) words.push(`${count(list.unknown_items, "item")} of the history ${list.unknown_items === 1 ? "is" : "are"} not known here.`);
  if (list.unknown_values) words.push(`Never seen in training: ${list.unknown_values.join(", ")}.`);
  if (list.reason) words.push(`Fewer than asked for: ${list.reason}.`);
  if (!form.may_change && who.user_id !== null) words.push("This service only reads for you: what a known user does cannot be kept. Try “Somebody new”.");
  return words;
}

function describeChange(items, n_popular) {
  const own = items.filter((item) => !item.popular).length;
  const some = `${own} of ${items.length} ${own === 1 ? "is" : "are"} not among the ${n_popular} most popular.`;
  const differs = own ? some : "All of them are among the most popular.";
  const fresh = items.filter((item) => Number.isNaN(item.rise)).length;
  const moved = items.filter((item) => item.rise).length;
  if (last === null) return differs;
  return fresh || moved ? `${fresh} new, ${moved} moved. ${differs}` : `Nothing changed. ${differs}`;
}

function drawPlace({ rank, rise }) {
  const mark = make("span", { className: rise > 0 ? "up" : "down" }, Number.isNaN(rise) ? "new" : "");
  if (rise) mark.append(make("span", { className: "hidden" }, rise > 0 ? "up " : "down "), `${rise > 0 ? "▲" : "▼"} ${Math.abs(rise)}`);
  return make("div", { className: "place" }, String(rank), rise === 0 ? "" : mark);
}

function drawItem(item, strongest) {
  const name = nameOf(item);
  const id = `id ${item.item_id}`;
  const rest = inRow([...name.endsWith(id) ? [] : [id], ...item.popular ? [`also popular: place ${item.popular}`] : []]);
  const acts = make("div", { className: "acts" });
  const words = make("div", {}, make("span", { className: "name" }, name), make("span", { className: "kind" }, ...inRow(labelKind(item))), make("small", {}, ...rest), acts);
  const state = Number.isNaN(item.rise) ? "fresh" : item.rise ? "moved" : "";
  const row = make("li", { className: state }, drawPlace(item), words, drawReasons(item, strongest));
  if ((form.may_change || who.user_id === null) && !byId("no-profile").checked) {
    acts.append(button(asButton(), name, () => take(item)), button("Not this", name, () => dismiss(item)));
  }
  const similar = button("Similar", name, attempt(() => showSimilar(item, row, similar)));
  similar.setAttribute("aria-expanded", "false");
  acts.append(similar);
  [...acts.children].forEach((one, index) => { one.dataset.held = `${item.item_id} ${index}`; });
  return row;
}

function bar(share, kind = "") {
  const filled = make("span", {});
  filled.style.width = `${Math.max(2, Math.min(100, share * 100))}%`; // by the object model, which the policy admits
  const made = make("span", { className: `bar ${kind}` }, filled);
  made.setAttribute("aria-hidden", "true");
  return made;
}

function drawReasons(item, strongest) {
  const reasons = (item.reasons ?? []).slice(0, 3);
  return make("ul", { className: "reasons" }, ...reasons.map((one) => {
    const isRhythm = one.kind === "memory" && one.every_days && PACE.test(one.text);
    const rhythm = isRhythm ? bar(one.days_ago / one.every_days, "pace") : "";
    return make("li", {}, make("span", { className: "words" }, one.text), one.effect ? bar(one.effect / strongest) : "", rhythm);
  }));
}

async function showSimilar(item, row, similar) {
  const isOpen = row.classList.toggle("open");
  similar.setAttribute("aria-expanded", String(isOpen));
  if (!isOpen) return row.lastChild.remove();
  const rows = make("ol", {});
  row.append(make("div", { className: "near" }, make("h3", {}, "Similar items"), rows));
  const answer = await call("/v1/similar", { item_id: item.item_id, k: 5, explain: true });
  const words = (one) => ` ${Math.round(one.cosine * 100)} % alike`;
  rows.append(...tellApart(answer.items).map((one) => make("li", {}, nameOf(one), make("small", {}, words(one)))));
}

async function tell(item, event) {
  const body = { user_id: who.user_id, item_id: item.item_id, ...event };
  const answer = await call("/v1/events", last ? { ...body, request_id: last.request_id } : body);
  if (!answer.kept) throw new Error("The service did not keep this: the user is forgotten, or the event is too old.");
}

const take = attempt(async (item) => {
  if (who.user_id !== null) await tell(item, form.events.length ? { event: byId("event").value } : {});
  taken.push({ item_id: item.item_id, name: nameOf(item) });
  drawTaken();
  await ask();
});

const dismiss = attempt(async (item) => {
  if (who.user_id !== null) await tell(item, { event: "dismiss" });
  else dismissed.push(item.item_id);
  await ask();
});

// ---- the interface

const resolve = (schema, all) => schema.$ref ? all[schema.$ref.split("/").pop()] : schema;

function typeOf(schema, all) {
  const found = resolve(schema, all);
  const ways = found.anyOf ?? found.oneOf;
  if (ways) return ways.map((one) => typeOf(one, all)).filter((name) => name !== "null").join(" or ");
  if (found.enum) return found.enum.join(" | ");
  return found.type === "array" ? `list of ${typeOf(found.items ?? {}, all)}` : schema.$ref ? found.title : found.type ?? "any";
}

const rowsOf = (fields) => make("dl", {}, ...fields.flatMap(([name, isNeeded, words]) => [
  make("dt", {}, isNeeded ? `${name} *` : name),
  make("dd", {}, words),
]));

function listFields(schema, all) {
  const found = resolve(schema, all);
  if (found.oneOf) return found.oneOf.flatMap((one) => [make("p", {}, make("b", {}, resolve(one, all).title)), ...listFields(one, all)]);
  return [rowsOf(Object.entries(found.properties ?? {}).map(([name, one]) => {
    return [name, found.required?.includes(name), [typeOf(one, all), one.description].filter(Boolean).join(". ")];
  }))];
}

function drawOperation(path, method, operation, all) {
  const content = operation.requestBody?.content["application/json"];
  const [needs] = operation.security ?? [];
  const asked = operation.parameters ?? [];
  const answer = operation.responses[200].content?.["application/json"]?.schema;
  return make("article", {},
    make("h3", {}, `${method.toUpperCase()} ${path}`),
    make("p", {}, operation.summary ?? ""),
    make("p", {}, make("small", {}, needs ? `Where keys are set: one of the role ${needs.key[0]}, or above it.` : "Open to all.")),
    asked.length ? rowsOf(asked.map((one) => [one.name, one.required, `in the ${one.in}`])) : "",
    ...content ? listFields(content.schema, all) : [],
    answer?.$ref ? make("p", {}, `Answers with ${resolve(answer, all).title}.`) : "",
    ...Object.entries(content?.examples ?? {}).flatMap(([name, one]) => [make("small", {}, name), make("pre", {}, JSON.stringify(one.value))]));
}

async function drawDocs() {
  const { paths, info, components } = await call("/openapi.json");
  const operations = Object.entries(paths).flatMap(([path, methods]) => {
    return Object.entries(methods).map(([method, one]) => drawOperation(path, method, one, components.schemas));
  });
  const types = Object.values(components.schemas).filter((one) => one.properties);
  const shapes = types.map((one) => make("article", {}, make("h3", {}, one.title), ...listFields(one, components.schemas)));
  const about = make("p", {}, `${info.description} A star marks what must be given. For programs: `, make("a", { href: "/openapi.json" }, "/openapi.json"));
  byId("docs").replaceChildren(make("h2", {}, "Interface"), about, ...operations, make("h2", {}, "Types"), ...shapes);
  byId("docs").hidden = false;
}

// ---- the beginning

// On a narrow screen the list comes first: the parts beside it are folded until somebody opens them.
function fold() {
  for (const part of document.querySelectorAll(".fold")) part.open = !NARROW.matches;
}

function showDials() {
  for (const name of DIALS) byId(`${name}-value`).textContent = Number(byId(name).value).toFixed(2);
}

function setDials(dials) {
  for (const name of DIALS) byId(name).value = dials[name];
  showDials();
}

const start = attempt(async () => {
  if (location.pathname === "/docs") return drawDocs();
  form = await call("/v1/page");
  byId("try").hidden = false;
  drawPeople();
  setDials(form.dials);
  const ended = form.data_until ? `, data until ${dayOf(form.data_until)}` : "";
  byId("about").textContent = `What would this person want next? ${count(form.items, "item")}, ${count(form.known_users, "known user")}${ended}.`;
  byId("event").replaceChildren(...form.events.map((name) => make("option", {}, name)));
  byId("event").value = form.target;
  byId("event-row").hidden = form.events.length < 2;
  for (const place of document.querySelectorAll(".past")) place.textContent = spoken(form.verb).replace(" {}", "");
  byId("repeats-row").hidden = form.repeats !== "allow";
  await choose(form.users[Math.floor(form.users.length / 2)] ?? NOBODY);
});

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = byId("user").value.trim();
  if (id && id !== String(who.user_id)) choose(form.users.find((one) => String(one.user_id) === id) ?? { ...NOBODY, user_id: id });
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  byId("key").value = "";
  byId("key-form").hidden = true;
  start();
});
let timer;
function later(act) {
  clearTimeout(timer);
  timer = setTimeout(act, 150);
}
for (const name of DIALS) byId(name).addEventListener("input", () => { showDials(); later(ask); });
for (const name of ["only-new", "k", "where", "event", "again", "no-profile"]) byId(name).addEventListener("change", () => ask());
byId("recommended").addEventListener("click", () => { setDials(form.dials); ask(); });
byId("plain").addEventListener("click", () => { setDials({ diversity: 0, novelty: 0 }); ask(); });
byId("search").addEventListener("input", () => later(attempt(search)));
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter") event.preventDefault();
});
NARROW.addEventListener("change", fold);
fold();
start();
