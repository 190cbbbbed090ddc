"use strict";

// Coordinates on the map are pixels of the map's grid: x is the column, y is minus the row. No projection is needed, and
// a rotated grid stands upright.

const report = JSON.parse(document.getElementById("report").textContent);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function swatch(colour) {
  const made = element("span", { className: "swatch" });
  made.style.background = colour;
  return made;
}

function number(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function area(squareMetres) {
  if (squareMetres < 1e4) return `${number(squareMetres)} m²`;
  if (squareMetres < 1e7) return `${number(squareMetres / 1e4, 1)} ha`;
  return `${number(squareMetres / 1e6, 1)} km²`;
}

function percent(share) {
  return `${number(100 * share, 1)} %`;
}

// Rounded down, so that what is below a limit is seen to be; what is added is less than a digit, and more than floats err.
function confidence(value) {
  return `${number(Math.floor(10 * value + 1e-3) / 10, 1)} %`;
}

function counted(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}

// Figures

function showSummary() {
  const total = report.classes.reduce((sum, c) => sum + c.area_m2, 0);
  const parts = [area(total), counted(report.polygon_count, "polygon"), ...report.headline];
  document.getElementById("summary").textContent = parts.join(" · ");
}

function showLegend() {
  const items = report.classes.map((c) => element("li", {}, swatch(c.colour), c.class_name));
  document.getElementById("legend").append(...items);
}

function showAreas() {
  const largest = Math.max(...report.classes.map((c) => c.share));
  const headings = ["Class", "", "Area", "Share", "Polygons"].map((text) =>
    element("th", { scope: "col", textContent: text }),
  );
  const rows = report.classes.map((c) => {
    const bar = element("div", { className: "bar" });
    bar.style.width = `${largest ? (100 * c.share) / largest : 0}%`;
    bar.style.background = c.colour;
    const figures = [area(c.area_m2), percent(c.share), number(c.polygons)];
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, element("span", { className: "name", textContent: c.class_name })),
      element("td", {}, bar),
      ...figures.map((text) => element("td", { textContent: text })),
    );
  });
  document
    .getElementById("areas")
    .append(element("thead", {}, element("tr", {}, ...headings)), element("tbody", {}, ...rows));
}

function showHistogram() {
  const chart = document.getElementById("histogram");
  const step = 100 / report.histogram.length;
  const largest = Math.max(...report.histogram);
  const shown = [];
  report.histogram.forEach((share, index) => {
    const range = `${index * step}-${(index + 1) * step} %`;
    const bar = element("i");
    bar.style.height = `${largest ? (100 * share) / largest : 0}%`;
    const label = element("b", { textContent: index % 2 ? "" : `${index * step} %` });
    chart.append(element("span", { title: `${range}: ${percent(share)} of the area` }, bar, label));
    if (share) shown.push(`${range}: ${percent(share)}`);
  });
  chart.setAttribute("aria-label", `Share of the area by confidence. ${shown.join(", ")}`);
}

function showUnsure(select) {
  const { below, polygons, area_m2, share, largest } = report.unsure;
  document.getElementById("unsure-summary").textContent = polygons
    ? `Below ${below} %: ${counted(polygons, "polygon")}, ${area(area_m2)} or ${percent(share)} of the area. There the ` +
      "other classes together are likelier than the one mapped. The largest:"
    : `No polygon has a mean confidence below ${below} %.`;
  const items = largest.map((polygon) => {
    const c = report.classes[polygon.place];
    const name = element("span", { className: "name" }, swatch(c.colour), c.class_name);
    const figures = `${area(polygon.area_m2)}, ${confidence(polygon.confidence)}`;
    const button = element("button", { type: "button" }, name, element("span", { className: "figures", textContent: figures }));
    button.addEventListener("click", () => select(polygon.index));
    return element("li", {}, button);
  });
  document.getElementById("unsure").append(...items);
}

function showProvenance() {
  const list = document.getElementById("provenance");
  for (const [term, text] of report.provenance) {
    list.append(element("dt", { textContent: term }), element("dd", { textContent: text }));
  }
}

// Polygons: deltas of coordinates in 1/16 px, where rings and polygons end, and their figures, as `polygon_data` in
// landseg/outputs/report.py packs them.

async function readPolygons() {
  const packed = Uint8Array.from(atob(document.getElementById("polygons").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const { vertices, rings, polygons } = report.counts;
  let offset = 0;
  const take = (Type, length) => {
    const array = new Type(buffer, offset, length);
    offset += array.byteLength;
    return array;
  };
  const data = {
    count: polygons,
    xs: positions(take(Int32Array, vertices)),
    ys: positions(take(Int32Array, vertices)),
    ringEnds: take(Int32Array, rings),
    polygonEnds: take(Int32Array, polygons),
    area_m2: take(Float32Array, polygons),
    confidence: take(Float32Array, polygons),
    perimeter_m: take(Float32Array, polygons),
    places: take(Uint16Array, polygons),
  };
  data.boxes = boxes(data);
  return data;
}

function positions(deltas) {
  const result = new Float32Array(deltas.length);
  let position = 0;
  for (let i = 0; i < deltas.length; i++) {
    position += deltas[i];
    result[i] = position / report.units_per_px;
  }
  return result;
}

// Calls visit(first, last) for each ring of a polygon, with its range of vertices.
function eachRing(data, polygon, visit) {
  for (let ring = polygon ? data.polygonEnds[polygon - 1] : 0; ring < data.polygonEnds[polygon]; ring++) {
    visit(ring ? data.ringEnds[ring - 1] : 0, data.ringEnds[ring]);
  }
}

function boxes(data) {
  const result = new Float32Array(4 * data.count);
  for (let polygon = 0; polygon < data.count; polygon++) {
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    eachRing(data, polygon, (first, last) => {
      for (let i = first; i < last; i++) {
        left = Math.min(left, data.xs[i]);
        right = Math.max(right, data.xs[i]);
        top = Math.min(top, data.ys[i]);
        bottom = Math.max(bottom, data.ys[i]);
      }
    });
    result.set([left, top, right, bottom], 4 * polygon);
  }
  return result;
}

function within({ boxes }, left, top, right, bottom) {
  const found = [];
  for (let i = 0; i < boxes.length; i += 4) {
    if (boxes[i] <= right && boxes[i + 2] >= left && boxes[i + 1] <= bottom && boxes[i + 3] >= top) found.push(i / 4);
  }
  return found;
}

function polygonAt(data, x, y) {
  return within(data, x, y, x, y).find((polygon) => {
    let inside = false;
    eachRing(data, polygon, (first, last) => {
      for (let i = first, j = last - 1; i < last; j = i++) {
        const [xi, yi, xj, yj] = [data.xs[i], data.ys[i], data.xs[j], data.ys[j]];
        if (yi > y !== yj > y && x < xi + ((xj - xi) * (y - yi)) / (yj - yi)) inside = !inside;
      }
    });
    return inside;
  });
}

// The overlay has all that can be seen from afar; nearer, few polygons are in sight, and tiles of them are drawn.
const PolygonTiles = L.GridLayer.extend({
  initialize(data, options) {
    this.data = data;
    L.GridLayer.prototype.initialize.call(this, options);
  },

  createTile({ x, y, z }) {
    const size = this.getTileSize().x;
    const ratio = window.devicePixelRatio || 1;
    const tile = element("canvas", { width: size * ratio, height: size * ratio });
    const scale = 2 ** z;
    const [left, top, side] = [(x * size) / scale, (y * size) / scale, size / scale];
    const context = tile.getContext("2d");
    context.scale(ratio * scale, ratio * scale);
    context.translate(-left, -top);
    // Of the fill's colour, it closes the seams that antialiasing leaves between neighbours.
    context.lineWidth = 0.6 / scale;
    const paths = new Map();
    for (const polygon of within(this.data, left, top, left + side, top + side)) {
      const place = this.data.places[polygon];
      if (!paths.has(place)) paths.set(place, new Path2D());
      trace(this.data, polygon, paths.get(place));
    }
    for (const [place, path] of paths) {
      context.fillStyle = context.strokeStyle = report.classes[place].colour;
      context.fill(path, "evenodd");
      context.stroke(path);
    }
    return tile;
  },
});

function trace(data, polygon, path) {
  eachRing(data, polygon, (first, last) => {
    path.moveTo(data.xs[first], data.ys[first]);
    for (let i = first + 1; i < last; i++) path.lineTo(data.xs[i], data.ys[i]);
    path.closePath();
  });
}

// Map

function showMap() {
  const { rows, cols, metres_per_px } = report.grid;
  const extent = L.latLngBounds([-rows, 0], [0, cols]);
  const crs = L.extend({}, L.CRS.Simple, {
    distance: (a, b) => metres_per_px * Math.hypot(a.lng - b.lng, a.lat - b.lat),
  });
  const map = L.map("map", { crs, minZoom: -12, maxZoom: 5, zoomSnap: 0.5, attributionControl: false });
  map.fitBounds(extent);
  map.setMinZoom(map.getZoom() - 1);
  map.setMaxBounds(extent.pad(0.5));
  L.control.scale({ imperial: false }).addTo(map);
  addNorth(map);
  L.control.attribution({ prefix: '<a href="https://leafletjs.com">Leaflet</a>' }).addTo(map);

  // From the bottom to the top: imagery, classes, and Leaflet's own pane of outlines.
  const options = { pane: "tilePane", className: "imagery", alt: "Imagery" };
  if (report.imagery) L.imageOverlay(report.imagery, extent, options).addTo(map);
  const pane = map.createPane("classes");
  pane.style.zIndex = 300;
  L.imageOverlay(report.overlay, extent, { pane: "classes", alt: "Land-use classes" }).addTo(map);
  followOpacity(pane);
  return map;
}

// The map is drawn as its pixels are stored, whichever way that is on the ground.
function addNorth(map) {
  const [right, up] = report.grid.north;
  const degrees = Math.round((Math.atan2(right, up) * 180) / Math.PI) || 0;
  const control = L.control({ position: "topright" });
  control.onAdd = () => {
    const arrow = element("div", { id: "north", role: "img" }, element("b", { textContent: "N" }), element("i"));
    arrow.setAttribute("aria-label", degrees ? `North is ${Math.abs(degrees)}° to the ${right < 0 ? "left" : "right"} of up` : "North is up");
    arrow.style.transform = `rotate(${degrees}deg)`;
    return arrow;
  };
  control.addTo(map);
}

// The pane as a whole is faded, so that what lies on each other in it does not add up.
function followOpacity(pane) {
  const slider = document.getElementById("opacity");
  const follow = () => {
    pane.style.opacity = slider.value / 100;
    document.getElementById("opacity-value").textContent = `${slider.value} %`;
  };
  slider.value = report.imagery ? 60 : 100;
  slider.addEventListener("input", follow);
  follow();
}

function selector(map, data) {
  const outline = L.polygon([], { color: "#ffffff", weight: 3, fill: false, interactive: false }).addTo(map);
  const casing = L.polygon([], { color: "#000000", weight: 1, fill: false, interactive: false }).addTo(map);
  map.on("popupclose", () => [outline, casing].forEach((line) => line.setLatLngs([])));

  return (polygon, at) => {
    const rings = [];
    eachRing(data, polygon, (first, last) => {
      rings.push(Array.from({ length: last - first }, (_, i) => [-data.ys[first + i], data.xs[first + i]]));
    });
    const [left, top, right, bottom] = data.boxes.subarray(4 * polygon, 4 * polygon + 4);
    const box = L.latLngBounds([-bottom, left], [-top, right]);
    if (!at) map.fitBounds(box, { maxZoom: 3, padding: [90, 90], animate: false });
    L.popup({ autoPanPadding: [20, 20] })
      .setLatLng(at ?? [-top, (left + right) / 2])
      .setContent(attributes(data, polygon))
      .openOn(map);
    [outline, casing].forEach((line) => line.setLatLngs(rings));
  };
}

function attributes(data, polygon) {
  const c = report.classes[data.places[polygon]];
  const sure = data.confidence[polygon];
  const rows = [
    ["Class", element("span", {}, swatch(c.colour), c.class_name)],
    ["Area", area(data.area_m2[polygon])],
    ["Mean confidence", Number.isNaN(sure) ? "unknown" : confidence(sure)],
    ["Perimeter", `${number(data.perimeter_m[polygon])} m`],
  ];
  const cells = rows.map(([term, value]) =>
    element("tr", {}, element("th", { scope: "row", textContent: term }), element("td", {}, value)),
  );
  return element("table", {}, ...cells);
}

async function main() {
  showSummary();
  showLegend();
  showAreas();
  if (report.histogram.length) showHistogram();
  else document.querySelectorAll(".about-confidence").forEach((section) => section.remove());
  showProvenance();
  const map = showMap();
  const data = await readPolygons();
  const nearer = Math.floor(-Math.log2(report.grid.px_per_overlay_px)) + 1;
  new PolygonTiles(data, { pane: "classes", minZoom: nearer, maxZoom: map.getMaxZoom() }).addTo(map);

  const select = selector(map, data);
  const read = (at) => {
    const polygon = polygonAt(data, at.lng, -at.lat);
    if (polygon !== undefined) select(polygon, at);
  };
  map.on("click", (event) => read(event.latlng));
  map.getContainer().addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === map.getContainer()) read(map.getCenter());
  });
  if (report.histogram.length) showUnsure(select);
  document.body.dataset.ready = "true";
}

main();
