// The page begins: the filters and maps at once, all else when it comes into view.
const start = async () => {
  readCells(taken("cells"));
  readLooks();
  readLink();
  if (cells.length) {
    drawFilters();
    drawMaps();
    drawResults();
    drawTrials();
  }
  update({ link: false });
  fitAnswer();
  const go = () => {
    if (view.section) document.getElementById(view.section)?.scrollIntoView();
  };
  go();
  document.querySelector("nav").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    view.section = link.hash.slice(1);
    update();
    go();
  });
  addEventListener("hashchange", () => {
    readLink();
    update();
    go();
  });
  addEventListener("beforeprint", toPaper);
  addEventListener("afterprint", fromPaper);
  document.documentElement.dataset.ready = "yes";
  await whole;
  drawSheets();
  drawAlbums();
  go();
};
start();
