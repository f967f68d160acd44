"use strict";
for (const table of document.querySelectorAll("table.sort")) {
  table.querySelectorAll("thead th").forEach((head, place) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[place].dataset.v ?? row.cells[place].textContent;
      const order = (a, b) => value(a).localeCompare(value(b), "en", { numeric: false });
      const byNumber = (a, b) => parseFloat(value(a)) - parseFloat(value(b));
      const body = table.tBodies[0];
      const compare = head.classList.contains("n") ? byNumber : order;
      [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b)).forEach((row) => body.append(row));
    });
  });
}
const slider = document.getElementById("weight");
if (slider) {
  const rows = document.querySelectorAll("#weights tbody tr");
  const mark = document.getElementById("weight-mark");
  const show = () => {
    rows.forEach((row, place) => row.classList.toggle("on", place === Number(slider.value)));
    const cells = rows[slider.value].cells;
    document.getElementById("weight-says").textContent =
      `weight ${cells[0].textContent}: overlap ${cells[1].textContent}, reward against the label ${cells[4].textContent}, ` +
      `chosen longer ${cells[6].textContent}`;
    mark.setAttribute("x1", rows[slider.value].dataset.x);
    mark.setAttribute("x2", rows[slider.value].dataset.x);
    mark.removeAttribute("visibility");
  };
  slider.addEventListener("input", show);
  document.querySelector(".slider").hidden = false;
  show();
}
