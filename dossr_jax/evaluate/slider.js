// Lays two results of every photo over one another, a divider between them. Without it, the page
// shows all results side by side.
(() => {
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const rows = [...document.querySelectorAll(".details")].filter((row) => row.children.length > 1);
  if (!rows.length) return;
  const nameOf = (figure) => figure.querySelector("img").alt;
  const names = [...new Set(rows.flatMap((row) => [...row.children].map(nameOf)))];
  const choice = (title, options, chosen) => {
    const select = make("select", {}, ...options.map((o) => make("option", { textContent: o })));
    select.value = chosen;
    select.addEventListener("change", showAll);
    return [make("label", {}, title + " ", select), select];
  };
  const bar = make("div", { className: "bar" });
  const [leftLabel, left] = choice("left", names, names[0]);
  const [rightLabel, right] = choice("right", names, bodyChoice(names));
  const [zoomLabel, zoom] = choice("zoom", ["1", "2", "4"], "1");
  bar.append(leftLabel, rightLabel, zoomLabel);
  rows[0].closest("section").before(bar);

  // The first result that is not an enlargement by bicubic.
  function bodyChoice(names) {
    return names.find((name) => !name.includes("bicubic")) ?? names[1];
  }

  const sliders = rows.map((row) => {
    const below = make("img"), above = make("img");
    const tags = [make("b", { className: "left" }), make("b", { className: "right" })];
    const line = make("i");
    const stage = make("div", { className: "stage" }, below, above, line, ...tags);
    const range = make("input", { type: "range", min: 0, max: 1000, value: 500 });
    range.setAttribute("aria-label", "divider");
    const scores = make("p", { className: "scores" });
    const scroll = make("div", { className: "scroll" }, stage);
    const all = make("details", {}, make("summary", { textContent: "all side by side" }));
    row.before(scroll, range, scores, all);
    all.append(row);

    const divide = () => {
      const at = range.value / 10;
      above.style.clipPath = `inset(0 0 0 ${at}%)`;
      line.style.left = `${at}%`;
    };
    const move = (event) => {
      const box = stage.getBoundingClientRect();
      range.value = (1000 * (event.clientX - box.left)) / box.width;
      divide();
    };
    // Where a finger has to move the picture itself, it does not move the divider.
    const pans = (event) => event.pointerType === "touch" && scroll.scrollWidth > scroll.clientWidth;
    range.addEventListener("input", divide);
    stage.addEventListener("click", move);
    stage.addEventListener("pointermove", (event) => {
      if (!pans(event)) move(event);
    });

    return () => {
      const find = (name) => [...row.children].find((f) => nameOf(f) === name);
      const shown = [find(left.value) ?? row.children[0], find(right.value) ?? row.children[1]];
      const images = shown.map((figure) => figure.querySelector("img"));
      [below, above].forEach((element, i) => {
        element.src = images[i].src;
        element.alt = tags[i].textContent = images[i].alt;
      });
      for (const element of [stage, below, above]) {
        element.style.width = `${images[0].getAttribute("width") * zoom.value}px`;
        element.style.height = `${images[0].getAttribute("height") * zoom.value}px`;
      }
      stage.style.touchAction = scroll.scrollWidth > scroll.clientWidth ? "auto" : "pan-y";
      range.style.width = stage.style.width;
      scores.textContent = shown
        .map((figure) => figure.innerText || figure.textContent)
        .map((text) => text.trim().replace(/\s*\n\s*/g, " · "))
        .join("\n");
      divide();
    };
  });
  function showAll() {
    sliders.forEach((show) => show());
  }
  showAll();
})();
