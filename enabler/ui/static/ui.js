// Keeps the page current: an event says that something changed, and the page is read again. What is
// shown is always the server's own page, so there is one place that knows how to show it, and to escape.
"use strict";

(() => {
  const REFRESH = 3000; // ms; what comes without an event (a VM on its way here)
  const AGAIN = 2000; // ms until a stream that was refused is tried again
  const indicator = document.getElementById("indicator");
  const news = document.getElementById("news");
  const pause = document.getElementById("pause");
  let stream = null;
  let reading = false;
  let due = false;
  let paused = false;
  let retry = 0;

  function show(state, text) {
    document.documentElement.dataset.state = state;
    if (indicator.textContent !== text) indicator.textContent = text;
  }

  // Rows and parts are told apart by their IDs: what is the same stays, with its focus and selection.
  function patch(old, fresh) {
    if (old.isEqualNode(fresh)) return;
    const keyed = fresh.childElementCount > 0 && [...fresh.children].every((child) => child.id);
    if (!keyed || ![...old.children].every((child) => child.id)) {
      old.replaceWith(fresh);
      return;
    }
    const known = new Map([...old.children].map((child) => [child.id, child]));
    let place = null;
    for (const child of [...fresh.children]) {
      const same = known.get(child.id);
      known.delete(child.id);
      if (same && same.isEqualNode(child)) {
        place = keep(old, same, place);
      } else if (same && same.tagName !== "TR") {
        place = keep(old, same, place);
        patch(same, child);
        place = document.getElementById(child.id);
      } else {
        if (same) same.remove();
        child.classList.add("fresh");
        place = keep(old, child, place);
        setTimeout(() => child.classList.remove("fresh"), 2000);
      }
    }
    for (const gone of known.values()) gone.remove();
  }

  function keep(parent, child, after) {
    const next = after ? after.nextElementSibling : parent.firstElementChild;
    if (next !== child) parent.insertBefore(child, next);
    return child;
  }

  function take(fresh) {
    const before = new Set([...document.querySelectorAll("#timeline tr")].map((row) => row.id));
    const rows = [...fresh.querySelectorAll("#timeline tr")].filter((row) => !before.has(row.id));
    if (before.size && rows.length) {
      news.textContent = rows.slice(0, 5).reverse().map((row) => row.dataset.said).join(". ");
    }
    document.title = fresh.title;
    patch(document.querySelector("main"), document.adoptNode(fresh.querySelector("main")));
  }

  function refresh() {
    if (reading) {
      due = true;
      return;
    }
    reading = true;
    due = false;
    const request = new XMLHttpRequest(); // it parses HTML without running any of it
    request.open("GET", "/");
    request.responseType = "document";
    request.timeout = 10000;
    request.onload = () => {
      if (!request.response || !request.response.querySelector("main")) return;
      take(request.response);
      if (request.status === 200) show("live", paused ? "paused" : "live");
      else show("away", "the enabler is away");
    };
    request.onerror = request.ontimeout = () =>
      show("lost", "this page's server is away; what is shown may be old");
    request.onloadend = () => {
      reading = false;
      if (due) setTimeout(refresh, 100);
    };
    request.send();
  }

  function listen() {
    const since = document.querySelector("main").dataset.lastEventId || "";
    stream = new EventSource("/events?since=" + encodeURIComponent(since));
    const kinds = [
      "state", "reset", "present", "arrival", "departure", "migration-begun",
      "migration-switched-over", "migration-ended", "migration-aborted", "vm-changed",
      "capacity-changed", "libvirt-lost", "libvirt-found", "away", "back",
    ];
    for (const kind of kinds) stream.addEventListener(kind, refresh);
    stream.onerror = () => {
      if (stream && stream.readyState === EventSource.CLOSED) retry = setTimeout(listen, AGAIN);
      refresh();
    };
  }

  function unlisten() {
    clearTimeout(retry);
    if (stream) stream.close();
    stream = null;
  }

  // A page that nobody sees takes no connection, of which a browser has six for each server.
  function follow() {
    unlisten();
    if (document.hidden || paused) return;
    listen();
    refresh();
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    show(paused ? "paused" : "live", paused ? "paused" : "live");
    follow();
  });
  document.addEventListener("visibilitychange", follow);
  addEventListener("pagehide", unlisten);
  setInterval(() => {
    if (!document.hidden && !paused) refresh();
  }, REFRESH);
  show("live", "live");
  follow();
})();
