// The list: ten thousand rows, of which only those that are seen are elements.

import { el, put } from './dom.js'
import { bytes, clock, count, milliseconds, own, plural, visible } from './text.js'
import { short } from './body.js'
import { placeOf } from './filter.js'

const spare = 6 // rows above and below those that are seen

export class List {
  #scroller
  #body
  #pool = []
  #items = []
  #height = 26
  #selected = null // key
  #follow = true
  #drawn = false

  /** onSelect is told of the item that was chosen; onFollow, whether the end is kept in sight. */
  constructor(scroller, body, { onSelect, onFollow, onOpen }) {
    this.#scroller = scroller
    this.#body = body
    this.onSelect = onSelect
    this.onFollow = onFollow
    scroller.addEventListener('scroll', () => {
      const { scrollTop, clientHeight, scrollHeight } = scroller
      this.#setFollow(scrollTop + clientHeight >= scrollHeight - this.#height / 2)
      this.#ask()
    }, { passive: true })
    body.addEventListener('click', event => {
      const row = event.target.closest('[role=row]')
      const item = row && this.#items[Number(row.dataset.index)]
      if (item) this.select(item)
    })
    body.addEventListener('dblclick', () => onOpen())
    new ResizeObserver(() => this.#resized()).observe(scroller)
    matchMedia('(pointer: coarse)').addEventListener('change', () => this.#resized())
  }

  get items() { return this.#items }
  get following() { return this.#follow }
  get index() { return this.#selected === null ? -1 : this.#items.findIndex(item => item.key === this.#selected) }

  #resized() {
    this.#height = parseFloat(getComputedStyle(this.#scroller).getPropertyValue('--row')) || 26
    for (const row of this.#pool) row.shows = null
    this.#layout()
    if (this.#follow) this.toEnd()
    this.#ask()
  }

  #setFollow(follow) {
    if (follow === this.#follow) return
    this.#follow = follow
    this.onFollow(follow)
  }

  #layout() {
    this.#body.style.height = `${this.#items.length * this.#height}px`
    this.#scroller.setAttribute('aria-rowcount', String(this.#items.length + 1))
  }

  /** Shows other items. Who reads in the middle goes on reading there. */
  set(items) {
    const top = Math.floor(this.#scroller.scrollTop / this.#height)
    const anchor = this.#items[top]
    this.#items = items
    this.#layout()
    if (this.#follow) this.toEnd()
    else if (anchor) {
      const now = placeOf(items, anchor.n)
      if (now !== top) this.#scroller.scrollTop += (now - top) * this.#height
    }
    this.#ask()
  }

  toEnd() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight
    this.#setFollow(true)
  }

  select(item, { quiet = false } = {}) {
    this.#selected = item ? item.key : null
    if (item) this.#reveal(this.#items.indexOf(item))
    this.#ask()
    if (!quiet) this.onSelect(item)
  }

  /** Goes a number of rows up or down; at first, to the newest or the uppermost that is seen. */
  move(by) {
    const at = this.index
    if (at >= 0) this.choose(at + by)
    else this.choose(this.#follow ? this.#items.length - 1 : Math.ceil(this.#scroller.scrollTop / this.#height))
  }

  /** Goes to a row, or the one at the end that is next to it. */
  choose(index) {
    if (this.#items.length > 0) this.select(this.#items[Math.min(Math.max(index, 0), this.#items.length - 1)])
  }

  get page() { return Math.max(1, Math.floor(this.#scroller.clientHeight / this.#height) - 2) }

  #reveal(index) {
    if (index < 0) return
    const head = this.#scroller.firstElementChild.offsetHeight
    const top = index * this.#height
    const { scrollTop, clientHeight } = this.#scroller
    if (top < scrollTop) this.#scroller.scrollTop = top
    else if (top + this.#height > scrollTop + clientHeight - head) this.#scroller.scrollTop = top + this.#height - clientHeight + head
  }

  #ask() {
    if (this.#drawn) return
    this.#drawn = true
    requestAnimationFrame(() => {
      this.#drawn = false
      this.#draw()
    })
  }

  #draw() {
    const seen = Math.ceil(this.#scroller.clientHeight / this.#height)
    const first = Math.max(0, Math.floor(this.#scroller.scrollTop / this.#height) - spare)
    const last = Math.min(this.#items.length, first + seen + 2 * spare)
    const size = seen + 2 * spare
    while (this.#pool.length > size) this.#pool.pop().node.remove()
    while (this.#pool.length < size) {
      const node = el('div', 'row')
      node.setAttribute('role', 'row')
      node.id = `row-${this.#pool.length}`
      node.hidden = true
      this.#body.append(node)
      this.#pool.push({ node, shows: null })
    }
    const used = new Set()
    let active = ''
    for (let i = first; i < last; i++) {
      const item = this.#items[i]
      const slot = this.#pool[i % size]
      used.add(slot)
      const { node } = slot
      // An item is made anew whenever the list is; what it is of stays.
      if (slot.shows?.row !== item.row || slot.shows?.gap !== item.gap) {
        fill(node, item)
        slot.shows = item
      }
      node.hidden = false
      node.dataset.index = String(i)
      node.setAttribute('aria-rowindex', String(i + 2))
      node.style.transform = `translateY(${i * this.#height}px)`
      const selected = item.key === this.#selected
      node.setAttribute('aria-selected', String(selected))
      if (selected) active = node.id
    }
    for (const slot of this.#pool) {
      if (!used.has(slot)) {
        slot.node.hidden = true
        slot.shows = null
      }
    }
    if (active) this.#scroller.setAttribute('aria-activedescendant', active)
    else this.#scroller.removeAttribute('aria-activedescendant')
  }
}

function cell(className, text, label) {
  const node = el('span', className, text)
  node.setAttribute('role', 'gridcell')
  if (label) node.setAttribute('aria-label', label)
  return node
}

function fill(node, item) {
  if (item.gap) fillGap(node, item.gap)
  else fillRow(node, item.row)
}

const methods = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])

function fillRow(node, row) {
  node.className = `row k-${row.kind}` + (row.problems ? ' bad' : '')
  const path = cell('c-path')
  let method = row.method ?? ''
  if (row.kind === 'report') {
    method = 'report'
    path.append(el('span', 'dim', `${plural(row.delivered ?? 0, 'event')} delivered, `))
    path.append(row.lost ? el('span', 'lost', `${count(row.lost)} lost`) : el('span', 'dim', 'none lost'))
    path.append(el('span', 'dim', ` of ${count(row.number ?? 0)}`))
  } else if (row.kind === 'request') {
    path.append(visible(row.path ?? ''))
    if (row.query) path.append(el('span', 'dim', '?' + visible(row.query)))
    path.title = visible(`${row.host ?? ''}${row.path ?? ''}${row.query ? '?' + row.query : ''}`)
  } else {
    method = 'other'
    path.append(el('span', 'dim', visible(row.id)))
  }
  const method_ = cell(`c-method m-${methods.has(method) ? method.toLowerCase() : 'other'}`, visible(method))
  const status = cell(`c-status s-${Math.floor((row.status ?? 0) / 100)}`, row.status ? String(row.status) : '')
  const body = cell('c-body')
  if (row.size !== undefined) {
    const media = short(row.media ?? '')
    if (media) body.append(el('span', 'dim', visible(media) + ' '))
    body.append(row.size < 0 ? '?' : bytes(row.size))
    if (row.cut) body.append(' ', Object.assign(el('span', 'tag', 'cut'), { title: visible(row.cut) }))
  }
  const latency = cell('c-latency', row.latency === undefined ? '' : milliseconds(row.latency))
  node.replaceChildren(cell('c-time', clock(row.time ?? row.at)), method_, status, path, cell('c-client', visible(row.client ?? '')), body, latency, marks(row))
}

const signatures = { verified: '✓', unchecked: '?', unsigned: '–' }
const signatureWords = { verified: 'signature verified', unchecked: 'signature not checked, as there is no secret', unsigned: 'not signed' }

function marks(row) {
  const words = `${own(signatureWords, row.signature) ?? 'signature unknown'}; ${row.problems ? plural(row.problems, 'problem') + ' with the schema' : 'valid'}`
  const node = cell('c-marks', row.problems ? '✗' : own(signatures, row.signature) ?? '', words)
  node.classList.add(row.problems ? 'no' : `is-${own(signatures, row.signature) ? row.signature : 'unknown'}`)
  node.title = words
  return node
}

export const gapStates = {
  explained: 'the reports say why',
  unreported: 'no report yet',
  underway: 'under way when the last report was written',
  unexplained: 'no report says why',
  unknown: 'from before the first report here',
}

/** What is shown in place of gaps that are not in the list. */
export const gapsElsewhere = {
  unlisted: gap => `in ${plural(gap.gaps, 'gap')} above that ${gap.gaps === 1 ? 'is' : 'are'} not in the list`,
  forgotten: () => 'before the oldest event that is kept',
}

export function numbers(gap) {
  return gap.first === gap.last ? `number ${count(gap.first)}` : `numbers ${count(gap.first)} to ${count(gap.last)}`
}

function fillGap(node, gap) {
  const n = gap.last - gap.first + 1
  node.className = `row k-gap g-${own(gapStates, gap.state) ? gap.state : 'unknown'}`
  const text = cell('c-gap')
  text.setAttribute('aria-colspan', '8')
  const elsewhere = own(gapsElsewhere, gap.state)
  text.append(el('b', '', `${plural(n, 'event')} missing`), el('span', 'dim', ` ${elsewhere ? elsewhere(gap) : numbers(gap)} `))
  if (elsewhere) {
    node.replaceChildren(text)
    return
  }
  const reasons = gap.reasons ?? []
  if (reasons.length > 0 && gap.state !== 'unexplained') {
    const shared = gap.among > n
    for (const reason of reasons) {
      put(text.appendChild(el('span', 'tag')), shared ? reason.reason : `${reason.reason} ${count(reason.count)}`)
      text.append(' ')
    }
  }
  if (gap.state !== 'explained') text.append(el('span', 'dim', own(gapStates, gap.state) ?? ''))
  node.replaceChildren(text)
}
