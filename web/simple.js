// The simple node's inputs in the order in which people need them, and a slider as long as the way takes strengths.
// A saved workflow holds values by their places, so the node is saved and read in the order of its schema.
import { app } from "../../scripts/app.js";

const SIMPLE = "ZImageVLCondition";
const FIRST = ["prompt", "recipe", "mode", "strength"];
const LAST = ["look_file", "adapter_file", "weights", "combine", "mask_use", "start_percent", "end_percent", "layer", "image_tokens"];

const widgetOf = (node, name) => node.widgets?.find((w) => w.name === name);

function sort(node, names) {
  const place = (widget) => (names.includes(widget.name) ? names.indexOf(widget.name) : names.length);
  node.widgets?.sort((a, b) => place(a) - place(b)); // what is not named, the report's box, stays last
}

// A value beyond the slider stays as it is until somebody moves the slider.
function fitSlider(node, ranges) {
  const way = widgetOf(node, "mode"), strength = widgetOf(node, "strength");
  const [min, max] = ranges?.[way?.value] ?? [];
  if (!strength || min === undefined) return;
  strength.options.min = min;
  strength.options.max = max;
}

app.registerExtension({
  name: "zimage-vl.simple",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== SIMPLE) return;
    const { required = {}, optional = {} } = nodeData.input;
    const schema = [...Object.keys(required), ...Object.keys(optional)], shown = [...FIRST, ...LAST];
    const ranges = required.strength?.[1]?.ranges;
    const { onNodeCreated, configure, serialize } = nodeType.prototype;

    const asSaved = (method) =>
      function () {
        sort(this, schema);
        try {
          return method.apply(this, arguments);
        } finally {
          sort(this, shown);
          fitSlider(this, ranges);
        }
      };
    nodeType.prototype.configure = asSaved(configure);
    nodeType.prototype.serialize = asSaved(serialize);

    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      sort(this, shown);
      const way = widgetOf(this, "mode"), changed = way?.callback;
      if (way)
        way.callback = (...values) => {
          changed?.apply(way, values);
          fitSlider(this, ranges);
        };
      fitSlider(this, ranges);
    };
  },
});
