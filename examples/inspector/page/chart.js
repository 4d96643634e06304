// The strip: three small charts of the last five minutes, drawn once a second.

import { $, el } from './dom.js'
import { count, milliseconds, visible } from './text.js'

const span = 300 // seconds

// The reasons of the plugin, a closed set: each has a colour of its own.
const reasons = [
  'queue_full', 'circuit_open', 'timeout', 'network_error', 'server_error', 'rejected', 'expired', 'memory',
  'retired', 'gone', 'too_large', 'incomplete', 'internal_error',
]

/** The name of a reason's colour, where it is drawn and where it is named. */
export function inkOf(reason) {
  const i = reasons.indexOf(reason)
  return i < 0 ? 'muted' : `r${i}`
}

export class Chart {
  #points = new Map() // by second
  #progress = []
  #told = told([], 0)
  #now = 0
  #at = null // second under the pointer
  #lanes

  constructor(strip) {
    this.#lanes = ['rate', 'lost', 'latency'].map(name => {
      const figure = $(`lane-${name}`)
      const canvas = figure.querySelector('canvas')
      new ResizeObserver(() => this.draw()).observe(canvas)
      canvas.addEventListener('pointermove', event => {
        const { left, width } = canvas.getBoundingClientRect()
        const end = Math.floor(this.#now / 1000)
        this.#at = Math.min(end - span + Math.floor((event.clientX - left) / width * span), end - 1)
        this.draw()
      })
      canvas.addEventListener('pointerleave', () => {
        this.#at = null
        this.draw()
      })
      return { name, canvas, now: $(`${name}-now`), of: $(`${name}-of`), keys: $(`${name}-keys`) }
    })
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw())
    this.strip = strip
  }

  clear() {
    this.#points.clear()
    this.#progress = []
    this.#told = told([], 0)
  }

  add(pulse) {
    this.#now = pulse.now
    for (const point of pulse.points) this.#points.set(point.at, point)
    this.#progress.push(...pulse.progress)
    const oldest = Math.floor(pulse.now / 1000) - span - 1
    for (const at of this.#points.keys()) if (at < oldest) this.#points.delete(at)
    this.#progress = this.#progress.filter(one => one.to / 1000 >= oldest)
    this.#told = told(this.#progress, this.#now)
    this.draw()
  }

  draw() {
    if (!this.#now) return
    const end = Math.floor(this.#now / 1000)
    const colours = this.#colours()
    for (const lane of this.#lanes) {
      const { canvas } = lane
      const width = canvas.clientWidth
      const height = canvas.clientHeight
      if (width === 0) continue
      const scale = devicePixelRatio
      if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
        canvas.width = Math.round(width * scale)
        canvas.height = Math.round(height * scale)
      }
      const pen = canvas.getContext('2d')
      pen.setTransform(scale, 0, 0, scale, 0, 0)
      pen.clearRect(0, 0, width, height)
      const x = at => (at - (end - span)) / span * width
      pen.fillStyle = colours.line
      for (let minute = 1; minute < span / 60; minute++) pen.fillRect(Math.round(x(end - minute * 60)), 0, 1, height)
      pen.fillRect(0, height - 1, width, 1)
      this[`_${lane.name}`](lane, pen, { x, width, height, end, colours }, this.#told)
      if (this.#at !== null) {
        pen.fillStyle = colours.muted
        pen.fillRect(Math.round(x(this.#at + 0.5)), 0, 1, height)
      }
    }
  }

  #colour(name) {
    return getComputedStyle(this.strip.querySelector(`.ink-${name}`) ?? this.#ink(name)).color
  }

  #colours() {
    const colour = name => this.#colour(name)
    return { line: colour('line'), muted: colour('muted'), main: colour('main'), second: colour('second'), p50: colour('p50'), p95: colour('p95'), bad: colour('bad') }
  }

  // A custom property that depends on the theme is only resolved where it is used.
  #ink(name) {
    const node = el('i', `ink ink-${name}`)
    node.hidden = true
    this.strip.append(node)
    return node
  }

  // Rate: events of each second as an area; a line, what the reports say was delivered.
  _rate(lane, pen, { x, width, height, end, colours }, { seconds, until }) {
    const at = this.#at ?? end - 1
    const delivered = runs(seconds.filter(([at]) => at < until), second => second.delivered)
    let most = 1
    for (const point of this.#points.values()) most = Math.max(most, point.events)
    for (const run of delivered) most = Math.max(most, run.value)
    const y = value => height - 1 - value / most * (height - 12)
    pen.fillStyle = colours.main
    const bar = width / span
    for (const point of this.#points.values()) {
      if (point.events > 0) {
        const top = y(point.events)
        pen.fillRect(x(point.at), top, Math.max(bar, 1), height - 1 - top)
      }
      if (point.refused) {
        pen.fillStyle = colours.bad
        pen.fillRect(x(point.at), height - 5, Math.max(bar, 2), 5)
        pen.fillStyle = colours.main
      }
    }
    pen.strokeStyle = colours.second
    pen.lineWidth = 1.5
    pen.beginPath()
    for (const run of delivered) {
      pen.moveTo(x(run.from), y(run.value))
      pen.lineTo(x(run.to), y(run.value))
    }
    pen.stroke()
    this.#most(pen, most, `${decimal(most)}/s`, colours)
    const point = this.#points.get(at)
    const rate = this.#at === null ? delivered.at(-1) : delivered.find(run => run.from <= at && at < run.to)
    lane.now.textContent = `${count(point?.events ?? 0)}/s`
    lane.of.textContent = ago(end - at)
    const reported = rate ? `delivered ${decimal(rate.value)}/s${this.#at === null ? ', last report' : ''}` : 'delivered, as reported'
    keys(lane, [['second', reported], ...(this.#any('refused') ? [['bad', 'refused']] : [])])
    label(lane, `Events received in each second; now ${point?.events ?? 0}, at most ${decimal(most)} in the last five minutes`)
  }

  // Lost: what each report has more than the one before, over the time between them.
  _lost(lane, pen, { x, height, end, colours }, { seconds }) {
    const at = this.#at
    const all = new Map()
    let from = Infinity
    let to = 0
    for (const one of this.#progress) {
      if (at !== null && (at < Math.floor(one.from / 1000) || at >= one.to / 1000)) continue
      from = Math.min(from, one.from)
      to = Math.max(to, one.to)
      for (const [reason, n] of lostIn(one)) all.set(reason, (all.get(reason) ?? 0) + n)
    }
    let most = 0
    for (const [, { lost }] of seconds) most = Math.max(most, sum(lost))
    for (const run of runs(seconds, second => JSON.stringify(inOrder(second.lost).map(([reason, n]) => [reason, Number(n.toFixed(6))])))) {
      const left = Math.round(x(run.from))
      const wide = Math.max(Math.round(x(run.to)) - left, 1)
      let floor = height - 1
      for (const [reason, n] of inOrder(run.second.lost)) {
        const tall = n / most * (height - 12)
        pen.fillStyle = this.#colour(inkOf(reason))
        pen.fillRect(left, floor - tall, wide, tall)
        floor -= tall
      }
    }
    if (most > 0) this.#most(pen, most, `${decimal(most)}/s`, colours)
    const list = [...all].sort((a, b) => b[1] - a[1])
    lane.now.textContent = this.#progress.length === 0 ? 'no report yet' : count(sum(all))
    if (this.#progress.length === 0) lane.of.textContent = ''
    else if (at === null) lane.of.textContent = `in ${span / 60} min`
    else lane.of.textContent = to > 0 ? `in ${milliseconds(Math.max(to - from, 1000)).replace('.0', '')}` : ago(end - at)
    const shown = list.slice(0, 4)
    const rest = list.slice(4).reduce((n, one) => n + one[1], 0)
    keys(lane, [...shown.map(([reason, n]) => [inkOf(reason), `${visible(reason)} ${count(n)}`]), ...(rest ? [['muted', `others ${count(rest)}`]] : [])])
    label(lane, `Events lost in the last five minutes, as the reports say: ${list.map(([reason, n]) => `${visible(reason)} ${n}`).join(', ') || 'none'}`)
  }

  // Latency: the middle as a line, and what 95 of 100 stay below as an area.
  _latency(lane, pen, { x, width, height, end, colours }) {
    const points = [...this.#points.values()].filter(point => point.p50 !== undefined).sort((a, b) => a.at - b.at)
    const most = Math.max(1, ...points.map(point => point.p95))
    const y = value => height - 1 - Math.max(0, value) / most * (height - 12)
    const bar = Math.max(width / span, 1)
    pen.fillStyle = colours.p95
    for (const point of points) pen.fillRect(x(point.at), y(point.p95), bar, height - 1 - y(point.p95))
    pen.strokeStyle = colours.p50
    pen.lineWidth = 1.5
    pen.lineJoin = 'round'
    pen.beginPath()
    let before = null
    for (const point of points) {
      // A line through seconds in succession; one alone is a dash.
      if (point.at - 1 === before) pen.lineTo(x(point.at + 0.5), y(point.p50))
      else {
        pen.moveTo(x(point.at), y(point.p50))
        pen.lineTo(x(point.at + 0.5), y(point.p50))
      }
      before = point.at
    }
    pen.stroke()
    if (points.length > 0) this.#most(pen, most, milliseconds(most), colours)
    const point = this.#at === null ? points.at(-1) : this.#points.get(this.#at)
    const known = point?.p50 !== undefined
    lane.now.textContent = known ? milliseconds(point.p50) : '–'
    lane.of.textContent = known ? ago(end - point.at) : this.#at === null ? '' : ago(end - this.#at)
    keys(lane, [['p50', 'median'], ['p95', `95 % below${known ? ` ${milliseconds(point.p95)}` : ''}`]])
    label(lane, `Time from a request to the receipt of its event${known ? `: median ${milliseconds(point.p50)}, 95 percent below ${milliseconds(point.p95)}` : ''}`)
  }

  #any(what) {
    for (const point of this.#points.values()) if (point[what]) return true
    return false
  }

  #most(pen, most, text, colours) {
    pen.fillStyle = colours.muted
    pen.font = '10px system-ui, sans-serif'
    pen.textBaseline = 'top'
    pen.fillText(text, 0, 0)
  }
}

/** What a report has more than the one before of each reason, dropped and failed together. */
function lostIn(one) {
  const counts = new Map()
  for (const part of [one.dropped, one.failed]) {
    for (const [reason, n] of Object.entries(part ?? {})) counts.set(reason, (counts.get(reason) ?? 0) + n)
  }
  return counts
}

const placeOf = reason => (reasons.indexOf(reason) + reasons.length + 1) % (reasons.length + 1) // at the end, if it is unknown
const inOrder = counts => [...counts].sort((a, b) => placeOf(a[0]) - placeOf(b[0]))
const sum = counts => [...counts.values()].reduce((a, b) => a + b, 0)

/** Seconds in succession of which the same is told are one run: {from, to, value, second}. */
function runs(seconds, valueOf) {
  const list = []
  for (const [at, second] of seconds) {
    const value = valueOf(second)
    const last = list.at(-1)
    if (last && last.to === at && (last.value === value || Math.abs(last.value - value) < 1e-6)) last.to = at + 1
    else list.push({ from: at, to: at + 1, value, second })
  }
  return list
}

const ago = seconds => seconds <= 1 ? 'last second' : `${seconds} s ago`

/**
 * What became of events in each of the last seconds, of all pipelines together. A report
 * is spread evenly over the time since the one before.
 */
export function told(progress, now) {
  const seconds = new Map() // to { delivered, lost: by reason }
  const oldest = Math.floor(now / 1000) - span
  const pipelines = new Map() // to the last report of each
  for (const one of progress) {
    const last = pipelines.get(one.pipeline)
    if (!last || one.to > last.to) pipelines.set(one.pipeline, one)
    const lost = lostIn(one)
    const from = Math.min(one.from, one.to - 1) / 1000
    const to = one.to / 1000
    for (let at = Math.max(Math.floor(from), oldest); at < to; at++) {
      const part = (Math.min(at + 1, to) - Math.max(at, from)) / (to - from)
      let second = seconds.get(at)
      if (!second) seconds.set(at, second = { delivered: 0, lost: new Map() })
      second.delivered += one.delivered * part
      for (const [reason, n] of lost) second.lost.set(reason, (second.lost.get(reason) ?? 0) + n * part)
    }
  }
  // While one pipeline is yet to report on a second, less is known of it than happened.
  // One that has not reported for twice as long as before has ended.
  let until = Infinity
  for (const { from, to } of pipelines.values()) {
    if (now - to <= 2 * (to - from) + 2000) until = Math.min(until, Math.floor(to / 1000))
  }
  return { seconds: [...seconds].sort((a, b) => a[0] - b[0]), until }
}

const decimal = n => n < 9.95 ? String(Number(n.toFixed(1))) : count(Math.round(n))

// Only what changed is written: this happens every second.
function keys(lane, list) {
  const text = JSON.stringify(list)
  if (lane.keysText === text) return
  lane.keysText = text
  lane.keys.replaceChildren(...list.map(([ink, words]) => el('span', `key ink-${ink}`, el('i', 'dot'), el('span', '', words))))
}

function label(lane, text) {
  if (lane.canvas.getAttribute('aria-label') !== text) lane.canvas.setAttribute('aria-label', text)
}
