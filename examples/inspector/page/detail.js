// The details of an event, of a report and of a gap.

import { el, put, long, button } from './dom.js'
import { bytes, clip, clock, count, masked, milliseconds, own, plural, visible } from './text.js'
import { bytesOf, countFields, fields, hex, kindOf, mostParts, multipart, raster, textOf } from './body.js'
import { lines, member, read } from './json.js'
import { gapsElsewhere, gapStates, numbers } from './list.js'

const step = 20000 // characters of a text that are shown at once
const stepHex = 4096 // bytes of a dump that are
const stepItems = 100 // members of an object or an array that are
const openLines = 60 // an object with no more lines than this is open
const mostRows = 500 // of a table

const gapWords = {
  explained: 'The reports have a reason for everything that is missing here.',
  unreported: 'No report covers these numbers yet. They may still come: workers overtake each other, and deliveries are tried again.',
  underway: 'When the last report was written, as many events as are missing here waited or were being sent. They may still come.',
  unexplained: 'The reports know of fewer losses than there are. What is missing was delivered, as the plugin says, but not to this inspector; or a report was lost and the next one will tell.',
  unlisted: 'The list has a row for each of the newest 500 gaps. All events that are missing are counted at the top of the page.',
  forgotten: 'The inspector keeps so many events, and no more. What is missing among those that it has forgotten is counted at the top of the page, and has no row.',
  unknown: 'The first report that came here also counts what was before this inspector began, so it cannot be told which of its reasons belong here.',
}

export class Detail {
  #node
  #urls = []
  #abort = null

  constructor(node, { onClose, onCopy, onFilter }) {
    this.#node = node
    this.onClose = onClose
    this.onCopy = onCopy
    this.onFilter = onFilter
    this.event = null // what is shown, if it is a request
  }

  close() {
    this.#begin()
    this.#node.hidden = true
  }

  #begin() {
    this.#abort?.abort()
    this.#abort = new AbortController()
    for (const url of this.#urls) URL.revokeObjectURL(url)
    this.#urls = []
    this.event = null
    return this.#abort.signal
  }

  #show(...children) {
    this.#node.replaceChildren(...children.filter(child => child !== null))
    this.#node.scrollTop = 0
    this.#node.hidden = false
  }

  #head(title, ...tools) {
    const close = button('×', 'Close (Esc)', () => this.onClose())
    close.setAttribute('aria-label', 'Close')
    close.className = 'close'
    return el('header', 'detail-head', title, el('div', 'tools', ...tools, close))
  }

  showGap(gap) {
    this.#begin()
    const n = gap.last - gap.first + 1
    const elsewhere = own(gapsElsewhere, gap.state)
    if (elsewhere) {
      this.#show(this.#head(el('h2', 'target', `${plural(n, 'event')} missing ${elsewhere(gap)}`)), el('p', 'prose', own(gapWords, gap.state)))
      return
    }
    const reasons = gap.reasons ?? []
    const told = gap.among > n
      ? `${count(gap.among)} events are missing among the numbers ${count(gap.from)} to ${count(gap.to)}, which the same reports cover. Of these, the reports say:`
      : 'The reports say:'
    this.#show(
      this.#head(el('h2', 'target', `${plural(n, 'event')} missing`)),
      el('p', 'verdicts', el('span', `verdict ${gap.state === 'explained' ? 'warn' : gap.state === 'unexplained' ? 'no' : 'plain'}`, own(gapStates, gap.state) ?? '')),
      el('p', 'prose', own(gapWords, gap.state) ?? ''),
      reasons.length ? el('p', 'prose', told) : null,
      reasons.length ? table(['Reason', 'Events', 'What happened'], reasons.map(one => [
        one.reason, count(one.count), one.failed ? 'failed: left the queue, not answered with 2xx' : 'dropped: never in the queue',
      ])) : null,
      facts([
        ['Numbers', numbers(gap)], ['Source', gap.source], ['Boot', gap.boot],
        gap.at ? ['Report of', clock(gap.at)] : null,
      ]),
    )
  }

  async showEvent(row) {
    const signal = this.#begin()
    const title = el('h2', 'target')
    put(title, clip(`${row.method ?? row.kind} ${row.path ?? ''}`, 300))
    let text
    try {
      const answer = await fetch(`/api/events/${encodeURIComponent(row.id)}`, { signal })
      if (!answer.ok) throw new Error(answer.status === 404 ? 'This event is not kept any more.' : `The inspector answered ${answer.status}.`)
      text = await answer.text()
    } catch (error) {
      if (!signal.aborted) this.#show(this.#head(title), el('p', 'prose', error.message))
      return
    }
    if (signal.aborted) return
    const found = JSON.parse(text)
    // For the raw view, from the text, as JSON.parse loses digits of long numbers.
    const source = () => member(read(text), 'event')
    const { event } = found
    const tools = []
    if (row.kind === 'request') {
      this.event = event
      tools.push(button('Copy as curl', 'Copy as curl (y)', () => this.onCopy()))
    }
    const sections = row.kind === 'request' ? this.#request(event) : row.kind === 'report' ? report(event) : []
    this.#show(
      this.#head(row.kind === 'request' ? target(event) : title, ...tools),
      verdicts(found, row),
      found.problems.length ? section('Problems', el('ul', 'problems', ...found.problems.map(problem => put(el('li'), problem))), true, 'bad') : null,
      ...sections,
      section('Event', delivery(found, row, event), row.kind !== 'request'),
      section('As JSON', lazy(() => tree(source())), false),
    )
  }

  #request(event) {
    const data = object(event.data)
    const http = object(data.http)
    const request = object(http.request)
    const sections = []
    const at = (name, ...rest) => sections.push(section(name, ...rest))
    const peer = object(object(data.network).peer)
    const client = object(data.client).address
    const protocol = object(object(data.network).protocol).version
    const tls = object(object(data.tls).protocol).version
    at('Request', facts([
      ['Client', client === undefined ? undefined : filterable(client, () => this.onFilter('client', String(client)))],
      peer.address !== undefined && peer.address !== client ? ['Peer', join(peer.address, peer.port)] : null,
      ['Server', data.server ? join(object(data.server).address, object(data.server).port) : undefined],
      ['Protocol', protocol ? `HTTP/${protocol}${tls ? `, TLS ${tls}` : ''}` : undefined],
      ['User agent', object(data.user_agent).original], ['Request id', data.request_id],
      ['Trace', event.traceparent], ['Stands for', event.sampledrate ? plural(event.sampledrate, 'request') : undefined],
      ...Object.entries(object(data.attributes)).map(([name, value]) => [name, value]),
    ]))
    const query = object(data.url).query
    if (typeof query === 'string' && query !== '') at('Query', fieldTable('Parameter', query))
    this.#body(at, 'Body', request.body, request.header)
    if (request.cookie) at('Cookies', values('Cookie', request.cookie))
    at('Headers', values('Header', object(request.header)))
    const response = http.response
    if (response) {
      const { status_code: status, header, body } = object(response)
      at('Response', facts([['Status', status], ['Duration', typeof data.duration_ms === 'number' ? milliseconds(data.duration_ms) : undefined]]))
      this.#body(at, 'Response body', body, header)
      if (header) at('Response headers', values('Header', object(header)))
    }
    return sections
  }

  #body(at, name, body, header) {
    if (typeof body !== 'object' || body === null) return
    const given = object(header)['content-type']
    const media = Array.isArray(given) ? String(given[0]) : ''
    const data = bytesOf(body)
    const about = el('p', 'about')
    const parts = []
    if (media) parts.push(clip(media, 200))
    if (typeof body.size === 'number') parts.push(bytes(body.size))
    put(about, parts.join(', '))
    if (body.truncated) {
      const kept = data ? `${bytes(data.length)} kept` : 'nothing kept'
      about.append(' ', put(el('span', 'tag cut'), `cut: ${clip(String(body.truncated_reason ?? 'no reason'), 100)}, ${kept}`))
    }
    if (!data || data.length === 0) {
      at(name, about)
      return
    }
    const view = el('div', 'view')
    const kind = kindOf(media, body, data)
    const text = typeof body.content === 'string' ? body.content : null
    const kinds = [...new Set([kind, ...(text === null ? [] : ['text']), 'hex'])]
    const names = { json: 'JSON', form: 'Form', multipart: 'Parts', image: 'Image', text: 'Text', hex: 'Hex' }
    const tabs = kinds.map(one => {
      const tab = button(names[one], '', () => choose(one))
      return tab
    })
    const choose = chosen => {
      kinds.forEach((one, i) => tabs[i].setAttribute('aria-pressed', String(one === chosen)))
      view.replaceChildren(this.#content(chosen, media, data, text, name))
    }
    choose(kind)
    const group = el('div', 'tabs', ...tabs)
    group.setAttribute('role', 'group')
    group.setAttribute('aria-label', `${name} as`)
    at(name, el('div', '', el('div', 'body-head', about, kinds.length > 1 ? group : null), view))
  }

  #content(kind, media, data, text, name) {
    switch (kind) {
      case 'json':
        try {
          return tree(read(text))
        } catch (error) {
          return el('div', '', el('p', 'about', `${error.message}, so it is shown as it came.`), pre(text))
        }
      case 'form': return fieldTable('Field', text)
      case 'multipart': return this.#parts(multipart(media, data))
      case 'image': return this.#image(raster(media, data), data, name)
      case 'text': return pre(text)
      default: return dump(data)
    }
  }

  #parts(parts) {
    if (parts.length === 0) return el('p', 'about', 'No part begins in it.')
    const rest = parts.length === mostParts ? el('p', 'about', `The first ${mostParts} parts are shown.`) : null
    return el('div', '', ...parts.map(part => {
      const head = el('p', 'part')
      put(head.appendChild(el('b')), part.name || '(no name)')
      if (part.file !== undefined) put(head.appendChild(el('span', 'dim')), ` file ${part.file}`)
      put(head.appendChild(el('span', 'dim')), ` ${part.media} ${bytes(part.data.length)}`)
      if (!part.whole) head.append(' ', el('span', 'tag cut', 'cut'))
      const text = textOf(part.data)
      const image = raster(part.media, part.data)
      return el('div', '', head, image ? this.#image(image, part.data, part.name) : text === null ? dump(part.data) : pre(text))
    }), rest)
  }

  #image(type, data, name) {
    const box = el('div', 'image')
    const draw = () => {
      const url = URL.createObjectURL(new Blob([data], { type }))
      this.#urls.push(url)
      const image = el('img')
      image.alt = `${name}: ${type}, ${bytes(data.length)}`
      image.addEventListener('error', () => box.replaceChildren(el('p', 'about', 'The browser cannot draw it.')))
      image.src = url
      box.replaceChildren(image)
    }
    // Few bytes can be many pixels, but not that many.
    if (data.length <= 200000) draw()
    else box.append(button('Show the image', '', draw))
    return box
  }
}

const object = value => typeof value === 'object' && value !== null && !Array.isArray(value) ? value : {}

const join = (address, port) => {
  const text = String(address ?? '')
  return port === undefined ? text : `${text.includes(':') ? `[${text}]` : text}:${port}`
}

function target(event) {
  const url = object(object(event.data).url)
  const method = object(object(object(event.data).http).request).method
  const heading = el('h2', 'target')
  put(heading.appendChild(el('span', 'target-method')), clip(String(method ?? ''), 100))
  heading.append(' ')
  put(heading, clip(String(url.path ?? ''), 400))
  if (url.query) put(heading.appendChild(el('span', 'dim')), clip('?' + String(url.query), 200))
  return heading
}

function section(name, content, open = true, className = '') {
  const node = el('details', `section ${className}`, el('summary', '', name), content)
  node.open = open
  return node
}

// What costs much to make is made when it is looked at.
function lazy(make) {
  const node = el('div', 'lazy')
  const look = () => {
    if (node.firstChild) return
    try {
      node.append(make())
    } catch (error) {
      node.append(el('p', 'about', error.message))
    }
  }
  queueMicrotask(() => node.closest('details')?.addEventListener('toggle', look))
  return node
}

/** A value, marked if the middleware has replaced it. */
function value(text) {
  const mask = masked(text)
  if (mask === 'redacted') return el('span', 'tag mask', 'REDACTED')
  if (mask === 'hashed') {
    const node = el('span', 'hash', el('span', 'tag mask', 'hashed'), ' ')
    node.append(text.slice('hmac-sha256:'.length))
    return node
  }
  return long('span', '', String(text), 2000)
}

function filterable(text, act) {
  const node = button('', 'Show only this client', act)
  node.className = 'link'
  return put(node, String(text))
}

function facts(list) {
  const node = el('dl', 'facts')
  for (const one of list) {
    if (!one || one[1] === undefined || one[1] === null || one[1] === '') continue
    const [name, content] = one
    node.append(el('div', '', put(el('dt'), clip(String(name), 200)), el('dd', '', content instanceof Node ? content : value(String(content)))))
  }
  return node
}

function fieldTable(name, text) {
  return table([name, 'Value'], fields(text, mostRows), countFields(text))
}

function table(names, rows, total = rows.length) {
  const node = el('table', '', el('thead', '', el('tr', '', ...names.map(name => {
    const cell = el('th', '', name)
    cell.scope = 'col'
    return cell
  }))))
  const body = node.appendChild(el('tbody'))
  for (const row of rows.slice(0, mostRows)) {
    body.append(el('tr', '', ...row.map((one, i) => el('td', i === 0 ? 'name' : '', value(String(one))))))
  }
  if (total > mostRows) {
    const rest = el('td', 'dim', `and ${count(total - mostRows)} more`)
    rest.colSpan = names.length
    body.append(el('tr', '', rest))
  }
  return node
}

function values(name, map) {
  const rows = []
  for (const [key, list] of Object.entries(map)) {
    for (const one of Array.isArray(list) ? list : [list]) rows.push([key, typeof one === 'string' ? one : JSON.stringify(one)])
  }
  return rows.length ? table([name, 'Value'], rows) : el('p', 'about', 'None.')
}

const pre = text => {
  const node = long('pre', '', text, step)
  node.tabIndex = 0
  node.setAttribute('role', 'region')
  node.setAttribute('aria-label', 'Content')
  return node
}

function dump(data) {
  const node = el('pre', 'hex')
  node.tabIndex = 0
  node.setAttribute('role', 'region')
  node.setAttribute('aria-label', 'Hex dump')
  let at = 0
  const more = button('', '', () => {
    more.remove()
    next()
  })
  more.className = 'more'
  function next() {
    node.append((at > 0 ? '\n' : '') + hex(data, at, at + stepHex))
    at += stepHex
    if (at < data.length) {
      more.textContent = `Show more of ${count(data.length)} bytes`
      node.append(more)
    }
  }
  next()
  return node
}

/** JSON as a tree, whose large parts are closed, and made when they are opened. */
export function tree(node) {
  const box = el('div', 'json')
  box.append(...branch(node, null, true, true))
  return box
}

function branch(node, name, last, root = false) {
  const label = name === null ? [] : [put(el('span', 'j-name'), clip(JSON.stringify(name), 500)), ': ']
  const comma = last ? '' : ','
  const inner = node.type === 'array' ? node.items.map(item => [null, item]) : node.type === 'object' ? node.members : null
  if (!inner) return [el('div', 'j-line', ...label, leaf(node), comma)]
  const [begin, end] = node.type === 'array' ? '[]' : '{}'
  if (inner.length === 0) return [el('div', 'j-line', ...label, begin + end + comma)]
  const box = el('details', 'j-box')
  const summary = el('summary', '', ...label, begin, el('span', 'j-more', ` ${plural(inner.length, node.type === 'array' ? 'item' : 'member')} `, end + comma))
  const items = el('div', 'j-items')
  box.append(summary, items, el('div', 'j-end', end + comma))
  let at = 0
  const more = button('', '', () => next())
  more.className = 'more'
  function next() {
    more.remove()
    for (const [key, item] of inner.slice(at, at + stepItems)) items.append(...branch(item, key, ++at === inner.length))
    if (at < inner.length) {
      more.textContent = `Show more of ${count(inner.length)}`
      items.append(more)
    }
  }
  const open = () => {
    if (box.open && at === 0) next()
  }
  box.addEventListener('toggle', open)
  if (root || lines(node, openLines + 1) <= openLines) {
    box.open = true
    next()
  }
  return [box]
}

function leaf(node) {
  if (node.type !== 'string') return el('span', `j-${node.type}`, node.text)
  if (masked(node.value)) return value(node.value)
  return long('span', 'j-string', JSON.stringify(node.value), 2000)
}

function verdicts(found, row) {
  const list = el('p', 'verdicts')
  const add = (kind, text) => list.append(el('span', `verdict ${kind}`, text), ' ')
  const signature = found.delivery?.signature
  if (signature === 'verified') add('ok', '✓ signature verified')
  else if (signature === 'unchecked') add('warn', 'signature not checked: the inspector has no secret')
  else add('warn', 'not signed')
  if (row.kind === 'other') add('plain', 'not an event of Request Mirror')
  else if (found.problems.length > 0) add('no', `✗ ${plural(found.problems.length, 'problem')} with the schema`)
  else add('ok', '✓ valid by the schema')
  if (found.repeats > 0) add('plain', `came ${count(found.repeats + 1)} times, counted once`)
  if (row.latency !== undefined) add('plain', `${milliseconds(row.latency)} after the request`)
  return list
}

function delivery(found, row, event) {
  const d = found.delivery ?? {}
  return facts([
    ['Time', row.time === undefined ? event.time : `${visible(String(event.time))}`],
    ['Received', d.at], ['Id', event.id], ['Sequence', event.sequence], ['Source', event.source], ['Type', event.type],
    ['Delivery', `${bytes(d.bytes ?? 0)}${d.encoding ? ` of ${d.encoding}` : ''}${d.batch ? `, in a batch of ${count(d.events)}` : ''}`],
    d.webhook_id && d.webhook_id !== event.id ? ['Id of the delivery', d.webhook_id] : null,
  ])
}

function report(event) {
  const data = object(event.data)
  const reasons = list => (Array.isArray(list) ? list : []).map(one => [String(object(one).reason), String(object(one).count)])
  const sections = [section('Report', facts([
    ['Pipeline began', data.since], ['Up to', data.sequence], ['Final', data.final === true ? 'yes: the pipeline has ended' : 'no'],
  ]))]
  const rows = ['seen', 'filtered', 'sampled_out', 'delivered', 'waiting', 'in_flight'].map(name => [name, String(data[name])])
  sections.push(section('Counts since the pipeline began', table(['Count', 'Events'], rows)))
  for (const [name, title] of [['dropped', 'Dropped: never in the queue'], ['failed', 'Failed: left the queue, not answered with 2xx'], ['truncated', 'Bodies that were cut']]) {
    const list = reasons(data[name])
    if (list.length) sections.push(section(title, table(['Reason', 'Events'], list)))
  }
  return sections
}

