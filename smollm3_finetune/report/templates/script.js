"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${dark() ? "light" : "dark"} colors`);
  };
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  const values = JSON.parse(document.getElementById("values").textContent);
  const text = (value) => {
    const size = Math.abs(value);
    const shown = size >= 1e6 || (size > 0 && size < 1e-3) ? value.toExponential(2).replace("e+", "e")
      : size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(+value.toPrecision(4));
    return shown.replaceAll("-", "−");
  };
  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - points[low - 1][0] <= points[low][0] - step ? low - 1 : low;
  };
  const charts = [...document.querySelectorAll(".plot")].map((plot) => {
    const about = values[plot.dataset.chart];
    const curves = about.curves.filter((curve) => curve.points.length);
    const steps = [...new Set(curves.flatMap((curve) => curve.points.map((p) => p[0])))].sort((a, b) => a - b);
    const svg = plot.firstElementChild;
    const cursor = svg.querySelector(".cursor");
    const readout = plot.parentElement.querySelector(".readout");
    const dots = curves.map((curve) => {
      const dot = document.createElementNS(svg.namespaceURI, "circle");
      dot.setAttribute("class", `cursor-dot ${curve.style}`);
      dot.setAttribute("r", "4.5");
      dot.setAttribute("visibility", "hidden");
      svg.append(dot);
      return dot;
    });
    const y = (value) => {
      const scale = about.log ? Math.log10 : (v) => v;
      return about.height * (1 - (scale(value) - scale(about.low)) / (scale(about.high) - scale(about.low)));
    };
    const show = (step) => {
      cursor.setAttribute("visibility", "visible");
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, `${100 * step / about.last}%`);
      const shown = curves.map((curve, i) => {
        const [at, value] = curve.points[nearest(curve.points, step)];
        dots[i].setAttribute("cx", `${100 * at / about.last}%`);
        dots[i].setAttribute("cy", y(value));
        dots[i].setAttribute("visibility", "visible");
        return [curve.label, text(value) + (at === step ? "" : ` (step ${at.toLocaleString("en-US")})`)];
      });
      const head = `step ${step.toLocaleString("en-US")}`;
      readout.replaceChildren(head, ...shown.flatMap(([name, value]) => {
        const strong = document.createElement("b");
        strong.textContent = value;
        return [curves.length > 1 ? ` · ${name} ` : " · ", strong];
      }));
      plot.setAttribute("aria-valuenow", step);
      plot.setAttribute("aria-valuetext", [head, ...shown.map((pair) => pair.join(" "))].join(", "));
    };
    const hide = () => {
      for (const one of [cursor, ...dots]) one.setAttribute("visibility", "hidden");
      readout.textContent = "";
    };
    return { plot, svg, steps, last: about.last, show, hide };
  });
  if (charts.length) document.querySelector(".hint").hidden = false;

  let current = null;
  const showAll = (step) => { current = step; for (const chart of charts) chart.show(step); };
  const hideAll = () => { for (const chart of charts) chart.hide(); };
  for (const chart of charts) {
    const near = (step) => {
      const found = nearest(chart.steps.map((s) => [s]), step);
      return chart.steps[Math.max(0, Math.min(found, chart.steps.length - 1))];
    };
    const point = (event) => {
      const box = chart.svg.getBoundingClientRect();
      showAll(near((event.clientX - box.left) / box.width * chart.last));
    };
    chart.plot.addEventListener("pointermove", point);
    chart.plot.addEventListener("pointerdown", point);
    chart.plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hideAll(); });
    chart.plot.addEventListener("focus", () => showAll(near(current ?? chart.last)));
    chart.plot.addEventListener("blur", hideAll);
    chart.plot.addEventListener("keydown", (event) => {
      const at = chart.steps.indexOf(near(current ?? chart.last));
      const many = Math.max(1, Math.round(chart.steps.length / 10));
      const end = chart.steps.length - 1;
      const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
        PageDown: at - many, PageUp: at + many, Home: 0, End: end }[event.key];
      if (event.key === "Escape") hideAll();
      if (to === undefined) return;
      event.preventDefault();
      showAll(chart.steps[Math.max(0, Math.min(to, end))]);
    });
  }
})();
