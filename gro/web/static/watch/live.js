// The stream of news, for as long as somebody looks: a hidden page asks for nothing, and catches up when it is seen.

import { get } from "../base.js";

const AGAIN = 3000;

// on: {runs(list), steps(list), alarm(one), state(kind, text)}; kind is live, waiting or lost.
export function live(on) {
  let source = null, waiting = null;

  function close() {
    clearTimeout(waiting);
    source?.close();
    source = null;
  }

  function open() {
    close();
    if (document.hidden) return;
    const mine = source = new EventSource("/api/watch/stream");
    const news = (kind, tell) => mine.addEventListener(kind, (event) => { if (mine === source) tell(JSON.parse(event.data)); });
    mine.addEventListener("open", () => on.state("live", "live"));
    news("runs", ({ runs }) => on.runs(runs));
    news("steps", ({ runs }) => on.steps(runs));
    news("alarm", on.alarm);
    mine.addEventListener("error", () => {
      if (mine !== source) return;
      if (mine.readyState === EventSource.CLOSED) refused();
      else on.state("waiting", "the server does not answer. Is it still running in the terminal? "
        + "Started again, it has a new address, which the terminal shows.");
    });
  }

  // The stream was refused: why?  Where only streams are too many, the page goes on without one.
  async function refused() {
    close();
    try {
      const { runs } = await get("/api/watch/runs");
      on.state("waiting", "too many pages are open: this one looks every few seconds");
      on.runs(runs);
      on.steps(runs);
    } catch (error) {
      on.state(error.status === 403 ? "lost" : "waiting", error.status === 403
        ? "the server was started again: open the address that the terminal shows now" : error.message);
      if (error.status === 403) return;
    }
    waiting = setTimeout(open, AGAIN);
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  open();
}
