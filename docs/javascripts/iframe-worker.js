/* A page opened from a file may start no Worker. There, the search's worker runs in a hidden frame of the same page instead. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inner = (this.inner = frame.contentWindow)
      this.waiting = []
      inner.document.open()
      inner.document.write("<!doctype html><html><body></body></html>")
      inner.document.close()
      inner.postMessage = data => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (typeof this.onmessage === "function") this.onmessage(event)
      }
      let loaded = Promise.resolve()
      const load = address =>
        (loaded = loaded.then(
          () =>
            new Promise((done, failed) => {
              const script = inner.document.createElement("script")
              script.src = address
              script.onload = done
              script.onerror = failed
              inner.document.body.appendChild(script)
            }),
        ))
      inner.importScripts = (...addresses) => Promise.all(addresses.map(load))
      load(new URL(url, document.baseURI).href).then(() => {
        for (const data of this.waiting) this.send(data)
        this.waiting = null
      })
    }
    send(data) {
      this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data }))
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.send(data)
    }
    terminate() {
      this.inner.frameElement.remove()
    }
  }
}
