// A request as a command for a shell. Whatever the event has in it, the shell must see
// nothing but words, and curl nothing but a request.

import { bytesOf } from './body.js'
import { masked } from './text.js'

const token = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/

// Those that belong to a connection, that curl makes itself, or that Traefik adds.
const left = new Set([
  'host', 'connection', 'content-length', 'transfer-encoding', 'keep-alive', 'upgrade', 'te', 'trailer', 'proxy-connection', 'expect',
  'x-forwarded-for', 'x-forwarded-host', 'x-forwarded-port', 'x-forwarded-proto', 'x-forwarded-server', 'x-real-ip',
])

// What must not be written to a terminal as it is: controls, but for the end of a line,
// and characters that turn the direction of a text or cannot be seen.
const unprintable = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/

/** A word for a shell: in single quotes, or in $'…' for what must not be on a terminal. */
export function quote(text) {
  if (/^[A-Za-z0-9_./:,%+][A-Za-z0-9_./:=,@%+-]*$/.test(text)) return text
  if (!unprintable.test(text)) return `'${text.replaceAll("'", "'\\''")}'`
  let word = ''
  const encoder = new TextEncoder()
  for (const character of text) {
    if (character === "'" || character === '\\') word += '\\' + character
    else if (character === '!' || unprintable.test(character)) {
      // Byte by byte, so that it is the same in every locale.
      for (const byte of encoder.encode(character)) word += '\\x' + byte.toString(16).padStart(2, '0')
    } else word += character
  }
  return `$'${word}'`
}

const oneLine = text => text.replace(/[\r\n\u0000]+/g, ' ')

/** The URL of an event's request. */
export function urlOf(data) {
  const url = data?.url ?? {}
  const server = data?.server
  const scheme = url.scheme === 'https' ? 'https' : 'http'
  let host = typeof server?.address === 'string' && /^[A-Za-z0-9._:[\]-]+$/.test(server.address) ? server.address : 'localhost'
  if (host.includes(':') && !host.startsWith('[')) host = `[${host}]`
  const port = Number.isInteger(server?.port) && server.port !== (scheme === 'https' ? 443 : 80) ? `:${server.port}` : ''
  const path = typeof url.path === 'string' ? url.path : '/'
  const query = typeof url.query === 'string' && url.query !== '' ? `?${url.query}` : ''
  // What cannot have been in a request line is not to break out of it.
  const target = `${path.startsWith('/') ? '' : '/'}${path}${query}`.replace(/[\u0000-\u0020\u007f#]/g, c => '%' + c.charCodeAt(0).toString(16).padStart(2, '0'))
  return `${scheme}://${host}${port}${target}`
}

/** The command for an event of a request. */
export function curl(event) {
  const data = event?.data
  const request = data?.http?.request ?? {}
  const notes = new Set()
  const words = []
  const method = typeof request.method === 'string' && token.test(request.method) ? request.method : 'GET'
  const body = request.body
  const kept = body ? bytesOf(body) : null
  // With a body, curl refuses --head; and without it waits for a body that never comes, until
  // the connection ends.
  if (method === 'HEAD' && !kept) words.push('--head')
  else if (method !== (kept ? 'POST' : 'GET')) words.push(`--request ${quote(method)}`)
  const version = data?.network?.protocol?.version
  if (version === '1.0') words.push('--http1.0')

  const header = []
  const add = (name, values) => {
    for (const value of Array.isArray(values) ? values : []) {
      if (typeof value !== 'string') continue
      if (masked(value)) notes.add(`values that are ${masked(value)}`)
      header.push([name, oneLine(value)])
    }
  }
  for (const [name, values] of Object.entries(request.header ?? {})) {
    // A name with an @ in front would make curl read a file.
    if (token.test(name) && !left.has(name)) add(name, values)
  }
  const cookies = []
  for (const [name, values] of Object.entries(request.cookie ?? {})) {
    for (const value of Array.isArray(values) ? values : []) {
      if (masked(value)) notes.add(`values that are ${masked(value)}`)
      cookies.push(`${name}=${value}`)
    }
  }
  if (cookies.length > 0) header.push(['cookie', oneLine(cookies.join('; '))])
  const has = name => header.some(one => one[0] === name)
  // What curl would add, and the client did not send.
  if (!has('accept')) header.push(['accept', null])
  if (!has('user-agent')) header.push(['user-agent', null])
  if (kept && !has('content-type')) header.push(['content-type', null])
  if (method === 'HEAD' && kept) header.push(['connection', 'close'])
  for (const [name, value] of header) {
    words.push(`--header ${quote(value === null ? `${name}:` : value === '' ? `${name};` : `${name}: ${value}`)}`)
  }

  let before = ''
  if (kept) {
    if (typeof body.content === 'string' && !body.content.includes('\u0000')) {
      // Raw, as an @ in front would make curl read a file.
      words.push(`--data-raw ${quote(body.content)}`)
    } else {
      const base64 = body.content_base64 ?? btoa(kept.reduce((all, byte) => all + String.fromCharCode(byte), ''))
      before = `printf %s ${quote(base64)} | base64 -d | `
      words.push('--data-binary @-')
    }
  }
  if (body?.truncated) notes.add('a body that is cut')
  if (/REDACTED|hmac-sha256:/.test(String(data?.url?.query ?? ''))) notes.add('parameters that are redacted or hashed')

  // As it was sent: no globs, no dots taken out.
  const command = [`${before}curl ${quote(urlOf(data))}`, '--globoff --path-as-is', ...words].join(' \\\n  ')
  const warning = notes.size > 0 ? `# Not as it was sent: ${[...notes].join(', ')}.\n` : ''
  return warning + command + '\n'
}
