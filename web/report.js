// A read-only box on every node of this pack that shows what the node reports ("text" of its ui output), and why it
// could not run: the frontend's own toast names no cause.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const REPORT = "report";
const MIN_HEIGHT = 88; // five lines; longer reports scroll, or make the node larger
const MAX_HEIGHT_BESIDE_PICTURES = 110; // what a node has left over goes to its pictures

const isOurs = (type) => type?.startsWith("ZImageVL");
const boxOf = (node) => (isOurs(node?.type) ? node.widgets?.find((w) => w.name === REPORT) : undefined);
const root = () => app.rootGraph ?? app.graph;

function addBox(node) {
  const { widget } = app.widgets.STRING(node, REPORT, ["STRING", { multiline: true, placeholder: "What it did, after a run" }], app);
  widget.serialize = false; // not in the saved workflow's values …
  widget.options.serialize = false; // … nor in the queued prompt
  widget.options.getMinHeight = () => MIN_HEIGHT;
  widget.options.read_only = true; // for Nodes 2.0
  widget.element.readOnly = true; // for classic nodes
}

function show(node, output) {
  const widget = boxOf(node);
  if (widget && output?.text?.length) widget.value = output.text.join("\n");
  if (widget && output?.images?.length) leaveRoom(node);
}

function leaveRoom(node) {
  for (const widget of node.widgets)
    if (widget.element?.tagName === "TEXTAREA") widget.options.getMaxHeight = () => MAX_HEIGHT_BESIDE_PICTURES;
}

// Nodes 2.0 keeps the last picture that a run sent while it went on, and would show it again where pictures of a result
// go. A node that is built anew, as in a visit to another tab, has only the latter.
function hideWhatIsShown(node) {
  const { graph, id } = node, place = graph === root() ? String(id) : `${graph?.id}:${id}`;
  node.hideOutputImages = Boolean(app.nodePreviewImages?.[place]?.length);
}

// A node by its id in a prompt: "7", or "12:7" for one inside of subgraph node 12.
function nodeOf(id) {
  let graph = root(), node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

function* allNodes(graph, above = "") {
  for (const node of graph?.nodes ?? []) {
    yield [above + node.id, node];
    if (node.subgraph) yield* allNodes(node.subgraph, `${above}${node.id}:`);
  }
}

// The words that a node has written so far; its report takes their place. What does not fit is scrolled by.
const LONGEST_SO_FAR = 240;

function showWords({ node, words }) {
  const widget = running === root()?.id ? boxOf(nodeOf(node)) : undefined; // not a node of another tab's workflow
  if (!widget) return;
  widget.value = words.length > LONGEST_SO_FAR ? `… ${words.slice(-LONGEST_SO_FAR)}` : words;
}

// What was in the boxes before the run that goes on: nodes that do not run anew keep theirs. Errors are not kept.
const before = new Map(), failed = new Set();
let running; // the id of the workflow whose run goes on

function say(id, text) {
  const widget = boxOf(nodeOf(id));
  if (!widget) return;
  widget.value = text;
  failed.add(String(id));
  if (app.nodeOutputs) delete app.nodeOutputs[id]; // else a visit to another tab brings the last run's report back
}

function emptyBoxes() {
  running = root()?.id;
  before.clear();
  for (const [id, node] of allNodes(root())) {
    const widget = boxOf(node);
    if (!widget) continue;
    if (!failed.has(id)) before.set(id, widget.value);
    widget.value = "";
  }
  failed.clear();
}

function keepBoxes(ids) {
  for (const id of ids ?? []) {
    const widget = boxOf(nodeOf(id));
    if (widget && !widget.value && before.has(String(id))) widget.value = before.get(String(id));
  }
}

// "input - message" of a validation is the message; the frontend's other refusals say what of which input.
function wordsOf(error) {
  const { type, message, details = "" } = error;
  const name = error.extra_info?.input_name;
  if (type === "custom_validation_failed" && details.startsWith(`${name} - `)) return details.slice(name.length + 3);
  if (type.startsWith("exception_during")) return details;
  return details ? `${message}: ${details}` : message;
}

function showRefusals(refused) {
  for (const [id, { errors }] of Object.entries(refused ?? {}))
    say(id, ["Not run.", ...new Set((errors ?? []).map(wordsOf))].join("\n"));
}

api.addEventListener("execution_start", emptyBoxes);
api.addEventListener("zimagevl.words", ({ detail }) => showWords(detail));
api.addEventListener("execution_cached", ({ detail }) => keepBoxes(detail?.nodes));
api.addEventListener("execution_error", ({ detail }) => say(detail.node_id, `Error: ${detail.exception_message?.trim()}`));
api.addEventListener("execution_interrupted", ({ detail }) => say(detail.node_id, "Stopped."));

// Refusals come back as the answer to the request and as no event, so the call itself is wrapped. Others may wrap it too:
// what was found is called, and its answer and errors go on as they are.
const queuePrompt = api.queuePrompt;
api.queuePrompt = async function () {
  try {
    const answer = await queuePrompt.apply(this, arguments);
    showRefusals(answer?.node_errors);
    return answer;
  } catch (error) {
    showRefusals(error?.response?.node_errors);
    throw error;
  }
};

app.registerExtension({
  name: "zimagevl.report",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!isOurs(nodeData.name)) return;
    const { onNodeCreated, onExecuted } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      addBox(this);
    };
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      show(this, output);
      hideWhatIsShown(this);
    };
  },
  // Coming back to a workflow's tab builds its nodes anew: give them their reports back.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) show(app.graph.getNodeById(id), output);
  },
});
