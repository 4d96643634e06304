// The page: what came over the live stream, what is asked for, and the keys.

import { $, el, button } from './dom.js'
import { count, plural, bytes, visible } from './text.js'
import { shown } from './filter.js'
import { List } from './list.js'
import { Detail } from './detail.js'
import { Chart } from './chart.js'
import { curl } from './curl.js'

let rows = [] // as the journal has them, the oldest first
let held = [] // that came during a pause
let keep = 10000
let path = '/events' // that takes deliveries
let secrets // how many the inspector has; unknown at first
let gaps = new Map() // by the row that they are before
let heldGaps = null
let heldReset = false // rows are from before a reset, those that are held from after it
let paused = false
let dirty = false
let methods = new Set()
const filter = { path: '', method: '', status: '', client: '', kind: '' }

const list = new List($('list'), $('rows'), {
  onSelect: choose,
  onFollow: showNewer,
  onOpen: () => detail.event && $('detail').focus(),
})
const detail = new Detail($('detail'), {
  onClose: () => close(),
  onCopy: copy,
  onFilter: (name, value) => {
    $(`f-${name}`).value = value
    readFilter()
  },
})
const chart = new Chart($('strip'))

function say(text) {
  $('said').textContent = text
}

// The list

function refresh() {
  if (dirty) return
  dirty = true
  requestAnimationFrame(() => {
    dirty = false
    const items = shown(rows, gaps, filter)
    list.set(items)
    const filtered = Object.values(filter).some(value => value !== '')
    $('count').textContent = filtered ? `${count(items.filter(item => item.row).length)} of ${plural(rows.length, 'row')}` : ''
    $('empty').hidden = items.length > 0
    if (items.length === 0) showEmpty(filtered && rows.length > 0)
    showNewer()
  })
}

function take(more) {
  const into = paused ? held : rows
  into.push(...more)
  if (into.length > keep) into.splice(0, into.length - keep)
  for (const row of more) {
    if (row.method && methods.size < 30 && !methods.has(row.method)) {
      methods.add(row.method)
      const option = el('option', '', visible(row.method))
      option.value = row.method
      $('f-method').append(option)
    }
  }
  if (paused) showState()
  else refresh()
}

function setGaps(all) {
  const map = new Map()
  for (const gap of all.list) {
    if (!map.has(gap.row)) map.set(gap.row, [])
    map.get(gap.row).push(gap)
  }
  // Where rows only look as if nothing were missing between them, a row says so.
  const unlisted = (state, n) => ({ source: state, boot: '', first: 1, last: n, state, gaps: all.more })
  if (all.more) map.get(all.list[0].row).unshift(unlisted('unlisted', all.more_of))
  if (all.forgotten) map.set(0, [unlisted('forgotten', all.forgotten)])
  if (paused) {
    heldGaps = map
    return
  }
  gaps = map
  refresh()
}

function reset() {
  held = []
  heldGaps = null
  chart.clear()
  if (paused) {
    heldReset = true
    showState()
  } else forget()
}

// Forgets what is shown.
function forget() {
  rows = []
  gaps = new Map()
  heldReset = false
  if (!$('detail').hidden) close()
  refresh()
}

function showNewer() {
  const node = $('newer')
  node.hidden = list.following || list.items.length === 0
  node.textContent = 'Newest ↓'
}

function showEmpty(filtered) {
  const node = $('empty')
  if (node.dataset.filtered === String(filtered)) return
  node.dataset.filtered = String(filtered)
  if (filtered) {
    node.replaceChildren(el('p', '', 'No event matches the filter.'), button('Show everything', '', () => {
      for (const name of Object.keys(filter)) $(`f-${name}`).value = ''
      readFilter()
      $('list').focus()
    }))
    return
  }
  const sample = `http:\n  middlewares:\n    mirror:\n      plugin:\n        requestmirror:\n          watchURL: ${location.origin}${path}` +
    (secrets ? '\n          signingSecrets:\n            - whsec_… # one of the inspector\'s SIGNING_SECRETS' : '')
  node.replaceChildren(
    el('p', '', 'Waiting for events. Point a mirror here:'),
    el('pre', '', sample),
  )
}

let loading = null // of the details, which may be asked for what they do not have yet

function choose(item) {
  if (!item) return
  $('split').classList.add('open')
  if (item.gap) detail.showGap(item.gap)
  else loading = detail.showEvent(item.row)
}

function close() {
  detail.close()
  $('split').classList.remove('open')
  list.select(null, { quiet: true })
  $('list').focus()
}

async function copy() {
  await loading
  if (!detail.event) return
  const text = curl(detail.event)
  try {
    await navigator.clipboard.writeText(text)
    say('Copied as curl')
    flash('Copied as curl')
  } catch {
    $('copy-text').value = text
    $('copy-dialog').showModal()
    $('copy-text').select()
  }
}

let flashing = 0
function flash(text) {
  document.querySelector('.flash')?.remove()
  const node = el('div', 'flash', text)
  node.setAttribute('aria-hidden', 'true') // the status says it
  document.body.append(node)
  clearTimeout(flashing)
  flashing = setTimeout(() => node.remove(), 1500)
}

// The state

let connection = 'connecting'

function showState() {
  const node = $('state')
  const state = connection === 'live' && paused ? 'paused' : connection
  node.dataset.state = state
  const words = { connecting: 'Connecting', live: 'Live', paused: held.length ? `Paused, ${count(held.length)} new` : 'Paused', lost: 'Connection lost, trying again' }[state]
  if ($('state-text').textContent !== words) $('state-text').textContent = words
}

function pause() {
  paused = !paused
  $('pause').setAttribute('aria-pressed', String(paused))
  $('pause').textContent = paused ? 'Go on' : 'Pause'
  say(paused ? 'Paused' : 'Live')
  if (!paused) {
    if (heldReset) forget()
    rows = rows.concat(held) // not push(...held): a call has room for some 100,000 arguments
    if (rows.length > keep) rows.splice(0, rows.length - keep)
    held = []
    if (heldGaps) {
      gaps = heldGaps
      heldGaps = null
    }
    refresh()
  }
  showState()
}

async function clear() {
  try {
    const answer = await fetch('/api/clear', { method: 'POST' })
    say(answer.ok ? 'Cleared' : `Not cleared: ${answer.status}`)
    if (answer.ok && paused) forget() // or else the stream says so
  } catch {
    say('Not cleared: no connection')
  }
}

const sum = map => Object.values(map ?? {}).reduce((a, b) => a + b, 0)

function showTotals(pulse) {
  const { totals } = pulse
  const list = [['', plural(totals.events, 'event')]]
  if (secrets === 0) list.push(['warn', 'no signature is checked'])
  if (totals.repeated) list.push(['', `${count(totals.repeated)} came again`])
  if (totals.invalid) list.push(['no', `${count(totals.invalid)} invalid`])
  if (pulse.missing) list.push([pulse.open ? 'no' : 'warn', `${count(pulse.missing)} missing${pulse.open ? `, ${count(pulse.open)} without a reason` : ''}`])
  const refused = sum(totals.refused)
  if (refused) list.push(['no', `${count(refused)} refused: ${Object.entries(totals.refused).map(([why, n]) => `${why} ${count(n)}`).join(', ')}`])
  const text = JSON.stringify(list)
  if ($('totals').dataset.text === text) return
  $('totals').dataset.text = text
  $('totals').replaceChildren(...list.map(([kind, words]) => el('li', kind, words)))
  $('totals').title = `${bytes(pulse.held)} kept`
}

// The live stream

let source = null
let last = '' // id of the last rows, for a connection that the page makes anew

function connect() {
  source = new EventSource(`/api/stream${last ? `?after=${encodeURIComponent(last)}` : ''}`)
  const on = (name, act) => source.addEventListener(name, event => act(JSON.parse(event.data), event))
  on('hello', hello => {
    keep = hello.keep
    path = hello.path ?? path
    secrets = hello.secrets
    delete $('empty').dataset.filtered // the sample depends on it
    refresh()
    connection = 'live'
    showState()
    chart.clear() // all of it follows
  })
  on('reset', reset)
  on('rows', (more, event) => {
    last = event.lastEventId
    take(more)
  })
  on('gaps', setGaps)
  on('pulse', pulse => {
    // What the journal has dropped is not kept here, either.
    let gone = 0
    while (gone < rows.length && rows[gone].n < pulse.first) gone++
    if (gone > 0 && !paused) {
      rows.splice(0, gone)
      refresh()
    }
    chart.add(pulse)
    showTotals(pulse)
  })
  source.addEventListener('error', () => {
    connection = 'lost'
    showState()
    // It tries again by itself, unless the answer was no stream.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000)
  })
}

// Filter, theme, keys

function readFilter() {
  for (const name of Object.keys(filter)) filter[name] = $(`f-${name}`).value
  filter.path = filter.path.toLowerCase()
  filter.client = filter.client.toLowerCase()
  refresh()
}

const themes = { auto: 'auto', light: 'light', dark: 'dark' }

function showTheme() {
  $('theme').textContent = `Colours: ${themes[document.documentElement.dataset.theme ?? 'auto']}`
}

function nextTheme() {
  const names = Object.keys(themes)
  const now = document.documentElement.dataset.theme ?? 'auto'
  const next = names[(names.indexOf(now) + 1) % names.length]
  if (next === 'auto') delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = next
  store('theme', next)
  showTheme()
  say(`Colours: ${themes[next]}`)
  chart.draw()
}

function store(name, value) {
  try {
    localStorage.setItem(name, value)
  } catch {
    // Then it holds until the page is closed.
  }
}

function stored(name) {
  try {
    return localStorage.getItem(name)
  } catch {
    return null
  }
}

const keys = {
  j: () => list.move(1),
  k: () => list.move(-1),
  g: () => list.choose(0),
  G: () => {
    list.toEnd()
    list.choose(Infinity)
  },
  p: pause,
  y: copy,
  t: nextTheme,
  '/': () => $('f-path').select(),
  '?': () => $('help-dialog').showModal(),
}

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return
  if (document.querySelector('dialog[open]')) return
  const writing = event.target.closest?.('input, select, textarea')
  if (event.key === 'Escape') {
    if (writing) $('list').focus()
    else if (!$('detail').hidden) {
      if ($('detail').contains(document.activeElement)) $('list').focus()
      else close()
    } else return
    event.preventDefault()
    return
  }
  if (writing) return
  const act = $('single-keys').checked && Object.hasOwn(keys, event.key) ? keys[event.key] : onList(event)
  if (!act) return
  event.preventDefault()
  act()
})

// Arrows and the like belong to the list only while it has the focus.
function onList(event) {
  if (document.activeElement !== $('list')) return null
  return {
    ArrowDown: () => list.move(1),
    ArrowUp: () => list.move(-1),
    PageDown: () => list.move(list.page),
    PageUp: () => list.move(-list.page),
    Home: () => list.choose(0),
    End: () => list.choose(Infinity),
    Enter: () => !$('detail').hidden && $('detail').focus(),
  }[event.key]
}

$('filters').addEventListener('input', readFilter)
$('filters').addEventListener('submit', event => {
  event.preventDefault()
  $('list').focus()
})
$('pause').addEventListener('click', pause)
$('clear').addEventListener('click', clear)
$('theme').addEventListener('click', nextTheme)
$('help').addEventListener('click', () => $('help-dialog').showModal())
$('help-close').addEventListener('click', () => $('help-dialog').close())
$('copy-close').addEventListener('click', () => $('copy-dialog').close())
$('newer').addEventListener('click', () => {
  list.toEnd()
  $('list').focus()
})
$('single-keys').checked = stored('single-keys') !== 'off'
$('single-keys').addEventListener('change', () => store('single-keys', $('single-keys').checked ? 'on' : 'off'))
showTheme()
showState()
readFilter()
connect()
