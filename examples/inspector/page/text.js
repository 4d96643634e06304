// Texts of events are other people's words. What they must not do is to look like
// something else: controls and characters that turn the direction of a text are shown
// by their names. A carriage return is one, but for that of a line's end.

const tricky = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb]|\r(?!\n)|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udfff]/g

/** The name of a character that cannot be seen. */
export function nameOf(character) {
  return 'U+' + character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')
}

/** A text on one line, with names for what cannot be seen. */
export function visible(text) {
  return String(text).replace(/\r\n|[\t\n]/g, ' ').replace(tricky, c => `⟨${nameOf(c)}⟩`)
}

/** A text in parts; those with `control` set stand for a character that cannot be seen. */
export function parts(text) {
  const list = []
  const plain = text => list.push({ text: text.replaceAll('\r\n', '\n') })
  let end = 0
  for (const match of text.matchAll(tricky)) {
    if (match.index > end) plain(text.slice(end, match.index))
    list.push({ text: nameOf(match[0]), control: true })
    end = match.index + match[0].length
  }
  if (end < text.length) plain(text.slice(end))
  return list
}

/** The first characters of a text, not half of one. */
export function clip(text, most) {
  if (text.length <= most) return text
  const code = text.charCodeAt(most - 1)
  return text.slice(0, code >= 0xd800 && code < 0xdc00 ? most - 1 : most)
}

const units = ['B', 'kB', 'MB', 'GB']

export function bytes(n) {
  let unit = 0
  while (n >= 999.5 && unit < units.length - 1) {
    n /= 1000
    unit++
  }
  return `${unit === 0 || n >= 99.95 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`
}

const grouped = new Intl.NumberFormat('en')

export function count(n) {
  return grouped.format(n)
}

/** One event, two events. */
export function plural(n, one, many = one + 's') {
  return `${count(n)} ${n === 1 ? one : many}`
}

export function milliseconds(ms) {
  const n = Math.abs(ms)
  if (n < 9.95) return `${Number(ms.toFixed(1))} ms`
  if (n < 999.5) return `${Math.round(ms)} ms`
  if (n < 59950) return `${(ms / 1000).toFixed(1)} s`
  if (n < 3600e3) return `${Math.round(ms / 60e3)} min`
  return `${Math.round(ms / 3600e3)} h`
}

export function clock(ms) {
  const at = new Date(ms)
  if (Number.isNaN(at.getTime())) return '–'
  const two = n => String(n).padStart(2, '0')
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${String(at.getMilliseconds()).padStart(3, '0')}`
}

const redacted = 'REDACTED'
const hashed = /^hmac-sha256:[0-9a-f]{64}$/

/** What the middleware made of a value, or ''. */
export function masked(value) {
  if (value === redacted) return 'redacted'
  return typeof value === 'string' && hashed.test(value) ? 'hashed' : ''
}

/** What a table has under a name; and nothing that every object has. */
export function own(table, name) {
  return Object.hasOwn(table, name) ? table[name] : undefined
}
