// A page that was opened as a file may not start a worker, in which the search runs: a hidden frame does its work.
// The frame loads the worker's script by a tag; messages go to it and come from it as events.
(function () {
  "use strict";
  if (window.location.protocol !== "file:") return;
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      var waiting = (this.waiting = []);
      var frame = (this.frame = document.createElement("iframe"));
      frame.hidden = true;
      document.body.appendChild(frame);
      var inside = frame.contentWindow;
      inside.document.open();
      inside.document.write("<!doctype html><body></body>");
      inside.document.close();
      var answer = (message) => {
        var event = new MessageEvent("message", { data: message });
        if (this.onmessage) this.onmessage(event);
        this.dispatchEvent(event);
      };
      inside.postMessage = answer; // what the script says to whoever started it
      inside.importScripts = function () {};
      var script = inside.document.createElement("script");
      script.src = String(url);
      script.onload = () => {
        this.ready = true;
        waiting.splice(0).forEach((message) => this.postMessage(message));
      };
      inside.document.body.appendChild(script);
    }
    postMessage(message) {
      if (!this.ready) this.waiting.push(message);
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: message }));
    }
    terminate() {
      this.frame.remove();
    }
  }
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
})();
