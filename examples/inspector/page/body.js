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

/** The media type without parameters, in lower case, and the parameters. */
export function mediaOf(header) {
  const text = typeof header === 'string' ? header : ''
  const [type, ...rest] = text.split(';')
  const parameters = Object.create(null)
  for (const match of rest.join(';').matchAll(/\s*([^=;\s]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))/g)) {
    parameters[match[1].toLowerCase()] ??= match[2] === undefined ? match[3].trim() : match[2].replace(/\\(.)/g, '$1')
  }
  return { type: type.trim().toLowerCase(), parameters }
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
  const { type, parameters } = mediaOf(media)
  if (raster(media, data)) return 'image'
  if (type.startsWith('multipart/') && parameters.boundary) return 'multipart'
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
    const list = []
    for (const match of new TextEncoder().encode(spaced).reduce((all, byte) => all + String.fromCharCode(byte), '').matchAll(/%([0-9a-fA-F]{2})|([\s\S])/g)) {
      list.push(match[1] ? parseInt(match[1], 16) : match[2].charCodeAt(0))
    }
    return loose.decode(new Uint8Array(list))
  }
}

/** The fields of a form or a query: [name, value], in order, at most so many. */
export function fields(text, most = 1000) {
  const list = []
  for (const part of text.split('&', most)) {
    if (part === '') continue
    const middle = part.indexOf('=')
    list.push(middle < 0 ? [unescape(part), ''] : [unescape(part.slice(0, middle)), unescape(part.slice(middle + 1))])
  }
  return list
}

function indexOf(data, pattern, from) {
  outer: for (let i = from; i <= data.length - pattern.length; i++) {
    for (let k = 0; k < pattern.length; k++) {
      if (data[i + k] !== pattern[k]) continue outer
    }
    return i
  }
  return -1
}

/**
 * The parts of a multipart body: {header: [[name, value]], name, file, media, data,
 * whole}. The last one may not be whole, if the body was cut.
 */
export function multipart(media, data, most = 100) {
  const { boundary } = mediaOf(media).parameters
  const encoder = new TextEncoder()
  const border = encoder.encode('--' + boundary)
  const gap = encoder.encode('\r\n\r\n')
  const list = []
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
