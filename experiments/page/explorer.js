// The explorer: two strided layers and their unit-stride twin, computed and drawn in the browser.
// Its arithmetic is that of stridenet/taps.py, with which tests/page/test_explorer.py compares it.
window.Explorer = (() => {
  "use strict";

  // Arithmetic. A 1-D map is a 2-D one of a single row, whose row axis is TRIVIAL.

  const LIMITS = { // least and largest value of each field
    size: [1, 64], channels: [1, 2048], kernel: [1, 16], stride: [1, 16], dilation: [1, 8],
    padding: [0, 16], later: [1, 8],
  };
  const MOST_PLACES = 9216; // of the twin's filter: more cannot be told apart on a screen
  const TRIVIAL = { kernel: 1, stride: 1, dilation: 1, padding: 0 };

  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const floorDiv = (a, b) => Math.floor(a / b);
  const ceilDiv = (a, b) => Math.ceil(a / b);
  const mod = (a, b) => ((a % b) + b) % b;
  const count = (n) => n.toLocaleString("en");
  const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

  // One axis of a layer, as TapMap: S is the factor of its output, F that of its input.
  function axisOf({ kernel, stride, dilation, padding }, size, S) {
    const F = stride * S;
    const reach = dilation * (kernel - 1) + 1;
    const outputSize = floorDiv(size + 2 * padding - reach, stride) + 1;
    const position = (output, tap) => stride * output + dilation * tap - padding;
    const firstBlock = floorDiv(position(0, 0), F);
    const twinKernel = floorDiv(position(S - 1, kernel - 1), F) - firstBlock + 1;
    const taps = range(S).map(() => range(F).map(() => Array(twinKernel).fill(-1)));
    for (let m = 0; m < S; m++) {
      for (let k = 0; k < kernel; k++) {
        const at = position(m, k);
        taps[m][mod(at, F)][floorDiv(at, F) - firstBlock] = k;
      }
    }
    const blocks = ceilDiv(size, F);
    const after = ceilDiv(outputSize, S) - 1 + twinKernel - blocks + firstBlock;
    let readsPhantoms = false;
    for (let u = 0; u < outputSize; u++) {
      for (let k = 0; k < kernel; k++) {
        readsPhantoms ||= position(u, k) >= size && position(u, k) < blocks * F;
      }
    }
    return { kernel, stride, dilation, padding, size, outputSize, S, F, twinKernel, taps,
      twinPadding: [-firstBlock || 0, after], readsPhantoms };
  }

  const newMap = (rows, cols, value) => ({
    rows, cols, data: range(rows * cols).map((i) => value(floorDiv(i, cols), i % cols)),
  });
  const read = (map, i, j) =>
    i >= 0 && j >= 0 && i < map.rows && j < map.cols ? map.data[i * map.cols + j] : 0;

  function stridedConvolution(map, weight, [down, across]) {
    return newMap(down.outputSize, across.outputSize, (u, v) => {
      let sum = 0;
      for (let a = 0; a < down.kernel; a++) {
        const i = down.stride * u + down.dilation * a - down.padding;
        for (let b = 0; b < across.kernel; b++) {
          const j = across.stride * v + across.dilation * b - across.padding;
          sum += weight.data[a * across.kernel + b] * read(map, i, j);
        }
      }
      return sum;
    });
  }

  // The twin's filter: for each output phase and each input phase a small filter (expand_filter).
  function expandFilter(weight, [down, across]) {
    const phases = (h, w) => range(h * w).map((i) => [floorDiv(i, w), i % w]);
    return phases(down.S, across.S).map(([m, n]) => phases(down.F, across.F).map(([p, q]) =>
      newMap(down.twinKernel, across.twinKernel, (a, b) => {
        const [k, l] = [down.taps[m][p][a], across.taps[n][q][b]];
        return k < 0 || l < 0 ? 0 : read(weight, k, l);
      })));
  }

  // A convolution of stride one between phase forms: zeros of the filter are multiplied, too.
  function unitStrideConvolution(phases, filters, [down, across]) {
    const [rows, cols] = [down, across].map((axis) => ceilDiv(axis.outputSize, axis.S));
    return filters.map((filter) => newMap(rows, cols, (u, v) => {
      let sum = 0;
      phases.forEach((map, p) => {
        for (let a = 0; a < down.twinKernel; a++) {
          for (let b = 0; b < across.twinKernel; b++) {
            const [i, j] = [u + a - down.twinPadding[0], v + b - across.twinPadding[0]];
            sum += filter[p].data[a * across.twinKernel + b] * read(map, i, j);
          }
        }
      });
      return sum;
    }));
  }

  function toPhases(map, [f, g]) {
    return range(f * g).map((p) => newMap(ceilDiv(map.rows, f), ceilDiv(map.cols, g),
      (i, j) => read(map, i * f + floorDiv(p, g), j * g + (p % g))));
  }

  function toMap(phases, [f, g], rows, cols) {
    return newMap(rows, cols, (i, j) =>
      read(phases[(i % f) * g + (j % g)], floorDiv(i, f), floorDiv(j, g)));
  }

  // Small integers: counting ones in 1-D, as in Figure 1; in 2-D such that neighbours differ.
  const mixed = (i, j, seed) => (73 * i + 151 * j + 37 * i * j + 29 * seed + 11) % 97;
  const pixel = (axes) => (i, j) => (axes === 1 ? j + 1 : mixed(i, j, 0) % 10);
  const weightOf = (axes, layer) => (i, j) => (axes === 1 ? j + 1 : 1 + (mixed(i, j, layer + 1) % 9));

  function numberError(name, value, [least, most]) {
    if (Number.isInteger(value) && value >= least && value <= most) return null;
    return `${name} must be a whole number from ${least} to ${count(most)}.`;
  }

  function fieldErrors(settings) {
    const errors = {};
    const check = (field, name, value, limits) => {
      const error = numberError(name, value, limits);
      if (error) errors[field] = error;
    };
    check("axes", "The number of axes", settings.axes, [1, 2]);
    check("size", "The size of the input", settings.size, LIMITS.size);
    check("later", "The product of the later strides", settings.later, LIMITS.later);
    settings.channels.forEach((c, i) => check(`channels${i}`, "The number of channels", c, LIMITS.channels));
    settings.layers.forEach((layer, i) => {
      for (const name of ["kernel", "stride", "dilation", "padding"]) {
        check(name + (i + 1), `The ${name}`, layer[name], LIMITS[name]);
      }
    });
    return errors;
  }

  // What only the numbers together can be: a kernel that fits, and a filter that can be drawn.
  function fitErrors(settings, layers) {
    const errors = {};
    layers.forEach(([down, axis], i) => {
      const padded = axis.size + 2 * axis.padding;
      const reach = axis.dilation * (axis.kernel - 1) + 1;
      const places = [down, axis].reduce((n, each) => n * each.S * each.F * each.twinKernel, 1);
      if (Object.keys(errors).length) return; // layer 2 reads a map that layer 1 does not give
      if (axis.outputSize < 1) {
        errors[`kernel${i + 1}`] = `The kernel reaches over ${plural(reach, "position")}, but the `
          + `padded map has ${padded}. Choose a smaller kernel or dilation, more padding or a larger map.`;
      } else if (places > MOST_PLACES) {
        errors[`stride${i + 1}`] = `The twin’s filter would have ${count(places)} places, and this page `
          + `draws ${count(MOST_PLACES)} at most. Choose smaller strides here or in the layers after it.`;
      }
    });
    return errors;
  }

  // From settings {axes, size, later, channels: [3 numbers], layers: [2 of {kernel, stride, dilation,
  // padding}]} return {errors} by field, or all that is drawn.
  function compute(settings) {
    const wrong = fieldErrors(settings);
    if (Object.keys(wrong).length) return { errors: wrong };
    const flat = settings.axes === 1;
    const layers = [];
    let [rows, cols] = [flat ? 1 : settings.size, settings.size];
    settings.layers.forEach((layer, i) => {
      const S = settings.later * (i ? 1 : settings.layers[1].stride);
      const across = axisOf(layer, cols, S);
      const down = flat ? axisOf(TRIVIAL, 1, 1) : across;
      layers.push([down, across]);
      [rows, cols] = [down.outputSize, across.outputSize];
    });
    const unfit = fitErrors(settings, layers);
    if (Object.keys(unfit).length) return { errors: unfit };
    return { errors: null, ...outputs(settings, layers), sizes: sizesOf(settings, layers) };
  }

  function outputs(settings, layers) {
    const image = newMap(layers[0][0].size, layers[0][1].size, pixel(settings.axes));
    const maps = [image];
    let phases = toPhases(image, layers[0].map((axis) => axis.F));
    const parts = layers.map((axes, i) => {
      const [down, across] = axes;
      const weight = newMap(down.kernel, across.kernel, weightOf(settings.axes, i));
      const filter = expandFilter(weight, axes);
      // Phantoms of the image are zeros; those of the map after layer 1 hold whatever layer 1 gives.
      const masked = i > 0 && axes.some((axis) => axis.readsPhantoms);
      if (masked) {
        const factor = axes.map((axis) => axis.F);
        phases = toPhases(toMap(phases, factor, maps[i].rows, maps[i].cols), factor);
      }
      phases = unitStrideConvolution(phases, filter, axes);
      maps.push(stridedConvolution(maps[i], weight, axes));
      return { axes, weight, filter, masked };
    });
    const strided = maps[2];
    const twin = toMap(phases, layers[1].map((axis) => axis.S), strided.rows, strided.cols);
    const different = strided.data.filter((value, i) => value !== twin.data[i]).length;
    return { maps, layers: parts, strided, twin, different };
  }

  // Channels and sizes of the three maps, [channels, …sizes], of both networks.
  function sizesOf(settings, layers) {
    const last = layers[1][1];
    const maps = [...layers.map((axes) => [axes[1].size, axes[1].F]), [last.outputSize, last.S]];
    const size = (channels, n) => [channels, ...Array(settings.axes).fill(n)];
    return {
      factors: maps.map(([, f]) => f),
      strided: maps.map(([n], i) => size(settings.channels[i], n)),
      twin: maps.map(([n, f], i) => size(settings.channels[i] * f ** settings.axes, ceilDiv(n, f))),
    };
  }

  // Drawing. A cell is 9 units wide and stands 10 from the next; wider gaps part phases.

  const PITCH = 10;
  const SMALLEST_TEXT = 8.5; // pixels: smaller numbers are left out
  const LARGEST_CELL = 30; // pixels
  const LARGEST_OUTPUT = 50; // pixels: the numbers there are long

  // Where cells stand along one direction: keys of output phase m, input phase p and block b.
  function along(keys) {
    let end = 0;
    return keys.map((key, i) => {
      const before = keys[i - 1];
      if (before) end += key.m !== before.m ? 9 : key.p !== before.p ? 4 : 0;
      end += PITCH;
      return { ...key, x: end - PITCH };
    });
  }

  const keysOf = (S, F, K) => range(S * F * K).map((i) => ({
    m: floorDiv(i, F * K), p: floorDiv(i, K) % F, b: i % K,
  }));

  // A form cut into phases: 2-D ones are cut in both directions, 1-D ones have a row for each phase.
  function phaseGrid(flat, S, F, K) {
    const [rows, cols] = flat
      ? [keysOf(S, F, 1), range(K).map((b) => ({ b }))]
      : [keysOf(S, F, K), keysOf(S, F, K)];
    const none = { m: 0, p: 0, b: 0 };
    return { rows: along(rows), cols: along(cols),
      at: (row, col) => (flat ? [none, { m: row.m, p: row.p, b: col.b }] : [row, col]) };
  }

  // A map or filter as it is, with a gap behind every block of F positions.
  function wholeGrid(rows, cols, F) {
    const keys = (n) => along(range(n).map((b) => ({ p: floorDiv(b, F), b })));
    return { rows: keys(rows), cols: keys(cols), at: (row, col) => [row, col] };
  }

  // Figure 3's four colours; for more phases a hue for each, and a lightness for each column.
  function tint(p, q, F, flat) {
    if (F === 1) return "--h:250;--t:0";
    if (F === 2) return `--h:${flat ? [65, 240][q] : [[240, 75], [160, 345]][p][q]};--t:.5`;
    const [index, all] = flat ? [q, F] : [p * F + q, F * F];
    return `--h:${Math.round(240 + (360 * index) / all) % 360};--t:${(q / (F - 1)).toFixed(2)}`;
  }

  const named = (flat, i, j) => (flat ? `${j + 1}` : `(${i + 1},${j + 1})`);
  const ordinal = (n) => {
    const ending = { one: "st", two: "nd", few: "rd", other: "th" };
    return n === 2 ? "second" : n + ending[new Intl.PluralRules("en", { type: "ordinal" }).select(n)];
  };
  const times = (numbers) => numbers.map(count).join("×");
  const square = (flat, n) => (flat ? `${n}` : `${n}×${n}`);

  // A frame around each block of a filter: what is blank in it is a structural zero.
  function frames(grid) {
    const spans = (keys) => {
      const first = keys.filter((key, i) => !i || key.m !== keys[i - 1].m || key.p !== keys[i - 1].p);
      return first.map(({ x, m, p }) => [x, PITCH * keys.filter((key) => key.m === m && key.p === p).length]);
    };
    return spans(grid.rows).flatMap(([y, height]) => spans(grid.cols).map(([x, width]) =>
      `<rect class="frame" x="${x + 0.5}" y="${y + 0.5}" width="${width}" height="${height}"/>`)).join("");
  }

  function drawCell(it, x, y, scale, role) {
    const text = it.text === undefined ? "" : String(it.text);
    const letters = text.replace(",", "").length; // a comma takes hardly any room
    const size = Math.min(5.5, 13.5 / Math.max(1, letters));
    const style = it.style ? ` style="${it.style}"` : "";
    const rect = `<rect class="cell ${it.kind}" x="${x + 1}" y="${y + 1}" width="9" height="9"${style}${role}/>`;
    return text && size * scale >= SMALLEST_TEXT
      ? `${rect}<text x="${x + 5.5}" y="${y + 5.7}" font-size="${size}" aria-hidden="true">${text}</text>`
      : rect;
  }

  // Draw a map; `cell` says of each place its class, style and text.
  function drawMap(host, grid, width, cell, label, largest = LARGEST_CELL) {
    const [wide, high, scale] = extent(grid, width, largest);
    const cells = grid.rows.flatMap((row) => grid.cols.map((col) =>
      drawCell(cell(...grid.at(row, col)), col.x, row.x, scale, "")));
    host.innerHTML = `<svg viewBox="0 0 ${wide} ${high}" role="img" aria-label="${label}"`
      + ` style="width:${Math.round(wide * scale)}px">${cells.join("")}</svg>`;
  }

  // Draw a filter, whose cells can be walked through; `cell` says weight and label of each, too.
  function drawFilter(host, grid, width, cell, label) {
    const [wide, high, scale] = extent(grid, width, LARGEST_CELL);
    const rows = grid.rows.map((row, i) => {
      const cells = grid.cols.map((col, j) => {
        const it = cell(...grid.at(row, col));
        return drawCell(it, col.x, row.x, scale, ` role="gridcell" tabindex="-1" data-row="${i}"`
          + ` data-col="${j}" data-weight="${it.weight}" aria-label="${it.label}"`);
      });
      return `<g role="row">${cells.join("")}</g>`;
    });
    host.innerHTML = `<svg viewBox="0 0 ${wide} ${high}" style="width:${Math.round(wide * scale)}px">`
      + `<g aria-hidden="true">${frames(grid)}</g><g role="grid" aria-label="${label}">${rows.join("")}</g></svg>`;
    host.querySelector(".weight").setAttribute("tabindex", "0");
  }

  // Width and height in units, and how many pixels a unit has.
  function extent(grid, width, largest) {
    const [wide, high] = [grid.cols, grid.rows].map((keys) => keys.at(-1).x + PITCH + 1);
    const most = Math.max(wide, high);
    return [wide, high, Math.min(width / most, largest / PITCH)];
  }

  // Presets

  const layer = (kernel, stride, dilation, padding) => ({ kernel, stride, dilation, padding });
  const PRESETS = {
    toy: {
      axes: 1, size: 8, later: 1, channels: [1, 1, 1], layers: [layer(4, 2, 1, 0), layer(1, 1, 1, 0)],
      note: "The paper’s Figure 1: the filter 1, 2, 3, 4 moves over the signal 1, …, 8 by two places. "
        + "The layer after it only multiplies by one.",
    },
    lenet12: {
      axes: 2, size: 28, later: 2, channels: [1, 20, 20], layers: [layer(5, 1, 1, 0), layer(2, 2, 1, 0)],
      note: "LeNet’s first two layers as in Table 2: conv4 still strides by 2, so that conv2’s output is "
        + "wanted in 2×2 phases.",
    },
    lenet23: {
      axes: 2, size: 24, later: 2, channels: [20, 20, 50], layers: [layer(2, 2, 1, 0), layer(5, 1, 1, 0)],
      note: "LeNet’s middle layers as in Table 2: conv4 still strides by 2, so that conv3’s output is "
        + "wanted in 2×2 phases.",
    },
    lenet34: {
      axes: 2, size: 12, later: 1, channels: [20, 50, 50], layers: [layer(5, 1, 1, 0), layer(2, 2, 1, 0)],
      note: "LeNet’s last two convolutions as in Table 2: no stride follows, so that conv4’s output is "
        + "the strided network’s.",
    },
    resnet: {
      axes: 2, size: 32, later: 1, channels: [3, 64, 64], layers: [layer(7, 2, 1, 3), layer(3, 2, 1, 1)],
      note: "ResNet’s stem on an image of 32×32, not 224×224. The 3×3 window of its pooling is drawn as a "
        + "convolution of one channel, and the strides of later layers are left out.",
    },
    vit: {
      axes: 2, size: 48, later: 1, channels: [3, 768, 768], layers: [layer(16, 16, 1, 0), layer(1, 1, 1, 0)],
      note: "ViT’s patches of 16×16 on an image of 48×48, not 224×224. The layer after them acts on each "
        + "patch by itself, which is a 1×1 convolution.",
    },
  };

  // The page

  const FIELDS = ["kernel", "stride", "dilation", "padding"];

  // A live region is announced whenever it is written, also with the text that it has.
  function write(place, text) {
    if (place.textContent !== text) place.textContent = text;
  }

  class View {
    constructor(element) {
      this.element = element;
      this.chosen = 0; // which layer is taken apart
    }

    all(selector) { return [...this.element.querySelectorAll(selector)]; }
    one(selector) { return this.element.querySelector(selector); }
    field(name) { return this.one(`[data-field="${name}"]`); }
    show(name, text) { write(this.one(`[data-show="${name}"]`), text); }

    map(name, caption, ...how) {
      drawMap(this.one(`.${name} .picture`), ...how);
      this.one(`.${name} figcaption`).innerHTML = caption;
    }

    filter(name, caption, ...how) {
      drawFilter(this.one(`.${name} .picture`), ...how);
      this.one(`.${name} figcaption`).innerHTML = caption;
    }

    readFields() {
      const number = (name) => {
        const text = this.field(name).value.trim();
        return text === "" ? NaN : Number(text);
      };
      return {
        axes: number("axes"), size: number("size"), later: number("later"),
        channels: [0, 1, 2].map((i) => number(`channels${i}`)),
        layers: [1, 2].map((i) => layer(...FIELDS.map((name) => number(name + i)))),
      };
    }

    writeFields({ axes, size, later, channels, layers }) {
      const values = { axes, size, later };
      channels.forEach((c, i) => { values[`channels${i}`] = c; });
      layers.forEach((each, i) => FIELDS.forEach((name) => { values[name + (i + 1)] = each[name]; }));
      for (const [name, value] of Object.entries(values)) this.field(name).value = value;
    }

    showErrors(errors) {
      for (const fieldset of this.all("fieldset")) {
        const error = fieldset.querySelector(".error");
        const inputs = [...fieldset.querySelectorAll("[data-field]")];
        const wrong = inputs.filter((input) => errors[input.dataset.field]);
        for (const input of inputs) {
          if (wrong.includes(input)) {
            input.setAttribute("aria-invalid", "true");
            input.setAttribute("aria-describedby", error.id);
          } else {
            input.removeAttribute("aria-invalid");
            input.removeAttribute("aria-describedby");
          }
        }
        write(error, wrong.map((input) => errors[input.dataset.field]).join(" "));
      }
    }

    update(preset) {
      const settings = this.readFields();
      const result = compute(settings);
      this.showErrors(result.errors || {});
      for (const button of this.all("[data-preset]")) {
        button.setAttribute("aria-pressed", String(button.dataset.preset === preset));
      }
      this.element.classList.toggle("stale", Boolean(result.errors));
      if (result.errors) {
        this.show("note", "The pictures below still show the last settings that fit.");
        return;
      }
      this.found = result;
      this.flat = settings.axes === 1;
      const masked = result.layers[1].masked
        ? " Layer 2 reads phantoms of the map after layer 1; the twin sets them to zero first." : "";
      this.show("note", `${preset ? PRESETS[preset].note : "These settings are your own."} `
        + `One channel of each map is drawn and computed.${masked}`);
      this.drawSizes();
      this.drawOutputs();
      this.refresh();
    }

    choose(preset) {
      this.writeFields(PRESETS[preset]);
      this.update(preset);
    }

    refresh() {
      this.light(null);
      const { axes } = this.found.layers[this.chosen];
      this.drawWhole(axes, this.found.maps[this.chosen]);
      this.drawApart(axes, this.found.maps[this.chosen]);
      this.drawFilters(this.found.layers[this.chosen]);
    }

    // The map that the layer reads, its phases in colour.
    drawWhole([down, across], map) {
      const { flat } = this;
      const F = across.F;
      const name = this.chosen ? "The map after layer 1" : "The input";
      const size = flat ? plural(across.size, "position") : square(flat, across.size);
      const phases = plural(F * down.F, "phase");
      const told = F === 1 ? "It has one phase and stays whole." : "A phase is a "
        + `position’s place within a block of ${square(flat, F)}; each has a colour.`;
      this.map("map-whole", `<b>${name}</b>, ${size}. ${told}`, wholeGrid(map.rows, map.cols, F), 232,
        (row, col) => {
          const [p, q] = [row.b % down.F, col.b % F];
          return { kind: "pixel", style: tint(p, q, F, flat),
            text: F === 1 ? undefined : named(flat, p, q).replace(/[()]/g, "") };
        }, `${name}, ${size}, in ${phases}`);
    }

    drawApart([down, across], map) {
      const { flat } = this;
      const F = across.F;
      const size = square(flat, ceilDiv(across.size, F));
      const phases = plural(F * down.F, "phase");
      const told = F === 1 ? "." : ` of ${size}; each takes every ${ordinal(F)} `
        + `${flat ? "position" : "row and column"}.`;
      const ragged = across.size % F ? " Dashed places are phantoms, behind the map’s end." : "";
      this.map("map-apart", `<b>Cut into ${phases}</b>${told}${ragged}`,
        phaseGrid(flat, 1, F, ceilDiv(across.size, F)), 232,
        (row, col) => {
          const [u, v] = [row.b * down.F + row.p, col.b * F + col.p];
          if (u >= map.rows || v >= map.cols) return { kind: "phantom" };
          return { kind: "pixel", style: tint(row.p, col.p, F, flat), text: read(map, u, v) };
        }, `${phases} of the map, ${size} each`);
    }

    // What stands at a place of a filter that is cut into phases.
    filterCell([down, across], weight, where) {
      return (row, col) => {
        const [k, l] = [down.taps[row.m][row.p][row.b], across.taps[col.m][col.p][col.b]];
        if (k < 0 || l < 0) return { kind: "zero", weight: -1, label: `structural zero${where(row, col)}` };
        return { kind: "weight", weight: k * across.kernel + l, text: read(weight, k, l),
          style: tint(row.p, col.p, across.F, this.flat),
          label: `weight ${named(this.flat, k, l)}${where(row, col)}` };
      };
    }

    drawFilters({ axes, weight }) {
      const { flat } = this;
      const [down, across] = axes;
      const { kernel, stride, dilation, size } = across;
      const phaseOf = (axis, tap) => mod(axis.dilation * tap - axis.padding, axis.stride);
      const dilated = dilation > 1 ? `, dilation ${dilation}` : "";
      this.filter("strided-filter",
        `<b>Strided filter</b>${flat ? " of " : ", "}${square(flat, kernel)}, stride ${stride}${dilated}`,
        wholeGrid(down.kernel, kernel, Infinity), 140,
        (row, col) => ({ kind: "weight", weight: row.b * kernel + col.b, text: read(weight, row.b, col.b),
          style: tint(phaseOf(down, row.b), phaseOf(across, col.b), stride, flat),
          label: `weight ${named(flat, row.b, col.b)}` }), "Strided filter");
      const alone = [flat ? down : axisOf(across, size, 1), axisOf(across, size, 1)];
      this.filter("cut-filter",
        stride === 1 ? "<b>Cut by its stride</b> of 1, it stays whole."
          : `<b>Cut by its stride</b> into ${square(flat, stride)} phases`,
        phaseGrid(flat, 1, stride, alone[1].twinKernel), 140,
        this.filterCell(alone, weight, () => ""), "Strided filter, cut into phases");
      this.filter("twin-filter", this.twinCaption(axes, weight.data.length),
        phaseGrid(flat, across.S, across.F, across.twinKernel), 336,
        this.filterCell(axes, weight, (row, col) => `, from input phase ${named(flat, row.p, col.p)} `
          + `to output phase ${named(flat, row.m, col.m)}`), "Twin’s filter");
    }

    twinCaption([down, across], weights) {
      const [copies, inputs] = [down.S * across.S, down.F * across.F];
      const side = square(this.flat, across.twinKernel);
      const places = copies * inputs * down.twinKernel * across.twinKernel;
      const zeros = places - weights * copies;
      const many = copies === 1 ? "once" : `${copies} times`;
      const outer = copies === 1 ? "" : `${this.flat ? "Groups of rows" : "Large squares"} are its ${copies} output phases, `;
      const inner = `${this.flat ? "rows" : "blocks"} of ${side} `;
      return `<b>Twin’s filter</b>, stride 1. ${outer}${outer ? inner : inner[0].toUpperCase() + inner.slice(1)}`
        + `${outer ? "in them the" : "are its"} ${plural(inputs, "input phase")}. `
        + (weights === 1 ? `The one weight stands ${many}` : `Each of ${count(weights)} weights stands ${many}`)
        + (zeros ? `; ${plural(zeros, "structural zero")} ${zeros === 1 ? "is" : "are"} blank.` : ".");
    }

    drawOutputs() {
      const { strided, twin, different, sizes } = this.found;
      const [least, most] = [Math.min(...strided.data), Math.max(...strided.data)];
      const numbers = strided.data.length;
      const shade = (value) => Math.max(0, Math.min(1, (value - least) / (most - least || 1)));
      const drawn = (name, title, map) => this.map(name, `<b>${title}</b>`,
        wholeGrid(map.rows, map.cols, Infinity), 150, (row, col) => {
          const value = read(map, row.b, col.b);
          return { kind: "output", style: `--v:${shade(value).toFixed(2)}`, text: value };
        }, `${title}: integers from ${count(least)} to ${count(most)}`, LARGEST_OUTPUT);
      drawn("strided-output", "Strided output", strided);
      drawn("twin-output", sizes.factors[2] > 1 ? "Twin’s output, in ordinary order" : "Twin’s output", twin);
      this.one(".verdict").classList.toggle("wrong", different > 0);
      this.show("verdict", different ? `${count(different)} of ${count(numbers)} integers differ.`
        : numbers === 1 ? "The one integer is equal." : `All ${count(numbers)} integers are equal.`);
    }

    drawSizes() {
      const largest = Math.max(...this.found.sizes.strided.map((size) => size[1]));
      for (const network of ["strided", "twin"]) {
        const cells = this.all(`.sizes .${network} td`);
        this.found.sizes[network].forEach((size, i) => { cells[i].innerHTML = sheets(size, largest); });
      }
    }

    say(cell) {
      const weight = Number(cell.dataset.weight);
      const label = cell.getAttribute("aria-label");
      if (weight < 0) return `Here is a ${label}: no weight stands at this place.`;
      const { axes: [, across], weight: values } = this.found.layers[this.chosen];
      const [k, l] = [floorDiv(weight, across.kernel), weight % across.kernel];
      const copies = this.all(`.twin-filter [data-weight="${weight}"]`).length;
      const where = cell.closest(".twin-filter") ? `; here${label.slice(label.indexOf(", ") + 1)}`
        : copies > 1 ? ", once for each output phase" : "";
      return `Weight ${named(this.flat, k, l)} = ${read(values, k, l)} stands at `
        + `${plural(copies, "place")} of the twin’s filter${where}.`;
    }

    // Light the copies of the weight in `cell` in all three filters; without a cell, none.
    light(cell) {
      for (const lit of this.all(".lit")) lit.classList.remove("lit");
      const weight = cell ? Number(cell.dataset.weight) : -1;
      this.element.classList.toggle("lighting", weight >= 0);
      if (weight >= 0) {
        for (const copy of this.all(`[data-weight="${weight}"]`)) copy.classList.add("lit");
      }
      this.show("live", cell ? this.say(cell) : "");
    }

    onKey(event) {
      const cell = event.target.closest("[role=gridcell]");
      if (!cell) return;
      if (event.key === "Escape") this.light(null);
      const grid = cell.closest("[role=grid]");
      const [row, col] = [Number(cell.dataset.row), Number(cell.dataset.col)];
      const [bottom, last] = [grid.children.length - 1, cell.parentNode.querySelectorAll("rect").length - 1];
      const to = { ArrowUp: [row - 1, col], ArrowDown: [row + 1, col], ArrowLeft: [row, col - 1],
        ArrowRight: [row, col + 1], Home: [event.ctrlKey ? 0 : row, 0],
        End: [event.ctrlKey ? bottom : row, last] }[event.key];
      if (!to) return;
      event.preventDefault();
      const next = grid.querySelector(`[data-row="${to[0]}"][data-col="${to[1]}"]`);
      if (!next) return; // beyond the edge
      grid.querySelector('[tabindex="0"]').setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    }

    listen() {
      const { element } = this;
      const on = (name, action) => element.addEventListener(name, action);
      const cellOf = (target) => target.closest?.("[role=gridcell]");
      const focused = () => element.querySelector("[role=gridcell]:focus");
      on("input", ({ target }) => { if (target.dataset.field) this.update(null); });
      on("change", ({ target }) => {
        if (target.name !== "explorer-layer") return;
        this.chosen = Number(target.value);
        this.refresh();
      });
      on("submit", (event) => event.preventDefault());
      on("click", ({ target }) => {
        const button = target.closest("[data-preset]");
        if (button) this.choose(button.dataset.preset);
      });
      on("keydown", (event) => this.onKey(event));
      for (const name of ["focusin", "mouseover"]) {
        on(name, ({ target }) => { if (cellOf(target)) this.light(cellOf(target)); });
      }
      for (const name of ["focusout", "mouseout"]) {
        on(name, ({ target }) => { if (cellOf(target)) this.light(name === "mouseout" ? focused() : null); });
      }
      window.addEventListener("beforeprint", () => this.light(null));
    }
  }

  // A map as a stack of sheets, more of them for more channels, and its size.
  function sheets([channels, ...sides], largest) {
    const side = 3 + (33 * sides[0]) / largest;
    const height = sides.length === 1 ? 5 : side;
    const number = Math.min(12, 1 + Math.round(Math.log2(channels)));
    const [step, far] = [1.6, 1.6 * (number - 1)];
    const rects = range(number).reverse().map((s) => `<rect x="${0.5 + step * s}" y="${0.5 + far - step * s}"`
      + ` width="${side.toFixed(1)}" height="${height.toFixed(1)}"/>`);
    const [w, h] = [side + far + 1, height + far + 1].map(Math.ceil);
    return `<svg viewBox="0 0 ${w} ${h}" width="${w}" height="${h}" aria-hidden="true">${rects.join("")}</svg>`
      + `<span>${times([channels, ...sides])}</span>`;
  }

  function mount(element) {
    const view = new View(element);
    view.listen();
    view.one(".work").hidden = false;
    view.choose("lenet12");
  }

  return { mount, compute };
})();
