// What is in a body, and how it can be read.

/** The bytes of what was kept of a body, or null if nothing was. */
export function bytesOf(body) {
  if (typeof body?.content === 'string') return new TextEncoder().encode(body.content)
  if (typeof body?.content_base64 !== 'string') return null
  try {
    const binary = atob(body.content_base64)
    const list = new Uint8Array(binary.length)
    for (let i = 0; i < binary.length; i++) list[i] = binary.charCodeAt(i)
    return list
  } catch {
    return null // somebody else's idea of base64
  }
}

const mostMedia = 1000 // characters of a media type, or the like, that are looked at
const mostBoundary = 70 // bytes, by RFC 2046

/**
 * The media type without parameters, in lower case, and the parameters. A header may be
 * as long as its sender likes, so each character of its beginning is looked at once.
 */
export function mediaOf(header) {
  const text = typeof header === 'string' ? header.slice(0, mostMedia) : ''
  const endOf = from => {
    const at = text.indexOf(';', from)
    return at < 0 ? text.length : at
  }
  const parameters = Object.create(null)
  const begin = endOf(0)
  for (let at = begin; at < text.length; at = endOf(at)) {
    const from = ++at // after the semicolon
    while (at < text.length && text[at] !== '=' && text[at] !== ';') at++
    if (text[at] !== '=') continue
    const name = text.slice(from, at++).trim().toLowerCase()
    while (text[at] === ' ' || text[at] === '\t') at++
    let value = ''
    if (text[at] === '"') {
      while (++at < text.length && text[at] !== '"') value += text[at] === '\\' ? text[++at] ?? '' : text[at]
    } else value = text.slice(at, endOf(at)).trim()
    if (name) parameters[name] ??= value
  }
  return { type: text.slice(0, begin).trim().toLowerCase(), parameters }
}

/** What is between the parts of a multipart body, or null if nothing can be. */
function borderOf(media) {
  const { type, parameters: { boundary } } = mediaOf(media)
  if (!type.startsWith('multipart/') || !boundary) return null
  const border = new TextEncoder().encode('--' + boundary)
  return border.length <= mostBoundary + 2 ? border : null
}

/** A media type in a word, for the list. */
export function short(media) {
  const { type } = mediaOf(media)
  if (type === '') return ''
  if (type === 'application/x-www-form-urlencoded') return 'form'
  if (type.startsWith('multipart/')) return 'multipart'
  if (type.endsWith('json') && type.startsWith('application/')) return 'json'
  const [group, name] = type.split('/')
  return (name ?? group).replace(/^(x-|vnd\.)/, '')
}

// Images that a browser decodes to nothing but pixels. SVG is none of them.
const rasters = [
  ['image/png', [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]],
  ['image/jpeg', [0xff, 0xd8, 0xff]],
  ['image/gif', [0x47, 0x49, 0x46, 0x38]],
  ['image/webp', [0x52, 0x49, 0x46, 0x46, -1, -1, -1, -1, 0x57, 0x45, 0x42, 0x50]],
  ['image/bmp', [0x42, 0x4d]],
  ['image/avif', [-1, -1, -1, -1, 0x66, 0x74, 0x79, 0x70, 0x61, 0x76, 0x69, 0x66]],
]

/**
 * The type of an image by its first bytes, if that is what its media type says, too.
 */
export function raster(media, data) {
  const { type } = mediaOf(media)
  const found = rasters.find(([, magic]) => magic.every((byte, i) => byte < 0 ? data.length > i : data[i] === byte))
  return found && found[0] === (type === 'image/jpg' ? 'image/jpeg' : type) ? found[0] : ''
}

/** How a body is best shown: json, form, multipart, image, text or hex. */
export function kindOf(media, body, data) {
  const { type } = mediaOf(media)
  if (raster(media, data)) return 'image'
  if (borderOf(media)) return 'multipart'
  if (typeof body.content !== 'string') return 'hex'
  if (type === 'application/x-www-form-urlencoded') return 'form'
  if (/^[\s]*[[{]/.test(body.content.slice(0, 100)) || type.endsWith('json')) return 'json'
  return 'text'
}

const loose = new TextDecoder()

function unescape(text) {
  const spaced = text.replaceAll('+', ' ')
  try {
    return decodeURIComponent(spaced)
  } catch {
    // What is not UTF-8 becomes the replacement character, as in the events.
    const from = new TextEncoder().encode(spaced)
    const list = new Uint8Array(from.length)
    let n = 0
    for (let at = 0; at < from.length; n++) {
      const high = from[at] === 0x25 ? digitOf(from[at + 1]) : -1
      const low = high < 0 ? -1 : digitOf(from[at + 2])
      list[n] = low < 0 ? from[at] : high * 16 + low
      at += low < 0 ? 1 : 3
    }
    return loose.decode(list.subarray(0, n))
  }
}

function digitOf(byte) {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30
  const letter = byte | 0x20
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x57 : -1
}

function* fieldsOf(text) {
  for (let at = 0, end; at < text.length; at = end + 1) {
    end = text.indexOf('&', at)
    if (end < 0) end = text.length
    if (end > at) yield text.slice(at, end)
  }
}

/** The fields of a form or a query: [name, value], in order, at most so many. */
export function fields(text, most = 1000) {
  const list = []
  for (const part of fieldsOf(text)) {
    if (list.length === most) break
    const middle = part.indexOf('=')
    list.push(middle < 0 ? [unescape(part), ''] : [unescape(part.slice(0, middle)), unescape(part.slice(middle + 1))])
  }
  return list
}

/** How many fields there are in all. */
export function countFields(text) {
  let n = 0
  for (const _ of fieldsOf(text)) n++
  return n
}

// Knuth, Morris and Pratt's search: whatever the bytes are, each is looked at twice at most.
function indexOf(data, pattern, from) {
  const back = [0]
  for (let i = 1, k = 0; i < pattern.length; i++) {
    while (k > 0 && pattern[i] !== pattern[k]) k = back[k - 1]
    if (pattern[i] === pattern[k]) k++
    back.push(k)
  }
  for (let i = from, k = 0; i < data.length; i++) {
    while (k > 0 && data[i] !== pattern[k]) k = back[k - 1]
    if (data[i] === pattern[k]) k++
    if (k === pattern.length) return i - k + 1
  }
  return -1
}

export const mostParts = 100

/**
 * The parts of a multipart body: {header: [[name, value]], name, file, media, data,
 * whole}. The last one may not be whole, if the body was cut.
 */
export function multipart(media, data, most = mostParts) {
  const list = []
  const border = borderOf(media)
  if (!border) return list
  const gap = Uint8Array.of(0x0d, 0x0a, 0x0d, 0x0a)
  let at = indexOf(data, border, 0)
  while (at >= 0 && list.length < most) {
    let begin = at + border.length
    if (data[begin] === 0x2d && data[begin + 1] === 0x2d) break
    while (begin < data.length && (data[begin] === 0x20 || data[begin] === 0x09)) begin++
    if (data[begin] === 0x0d && data[begin + 1] === 0x0a) begin += 2
    const next = indexOf(data, border, begin)
    const whole = next >= 0
    const end = whole ? Math.max(begin, next - 2) : data.length
    let middle = indexOf(data.subarray(0, end), gap, Math.max(0, begin - 2))
    const header = []
    if (middle < 0) middle = end
    for (const line of loose.decode(data.subarray(begin, middle)).split('\r\n')) {
      const colon = line.indexOf(':')
      if (colon > 0) header.push([line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim()])
    }
    const of = name => header.find(one => one[0] === name)?.[1]
    const { parameters } = mediaOf(of('content-disposition'))
    list.push({
      header, whole, name: parameters.name ?? '', file: parameters.filename, media: of('content-type') ?? '',
      data: data.subarray(Math.min(middle + gap.length, end), end),
    })
    at = next
  }
  return list
}

/** The text of bytes that are UTF-8, or null. */
export function textOf(data) {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data)
  } catch {
    return null
  }
}

/** Lines of a hex dump: the place, 16 bytes, and those of them that are ASCII. */
export function hex(data, from = 0, to = data.length) {
  const list = []
  for (let at = from; at < Math.min(to, data.length); at += 16) {
    const row = data.subarray(at, Math.min(at + 16, to))
    let numbers = ''
    let ascii = ''
    row.forEach((byte, i) => {
      numbers += byte.toString(16).padStart(2, '0') + (i === 7 ? '  ' : ' ')
      ascii += byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '·'
    })
    list.push(`${at.toString(16).padStart(8, '0')}  ${numbers.padEnd(49)} ${ascii}`)
  }
  return list.join('\n')
}
