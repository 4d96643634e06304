// Tests of what needs no page: node --test jstest/
import { test } from 'node:test'
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

import { bytes, clip, count, masked, milliseconds, parts, plural, visible } from '../page/text.js'
import { lines, member, read } from '../page/json.js'
import { bytesOf, countFields, fields, hex, kindOf, mediaOf, multipart, raster, short, textOf } from '../page/body.js'
import { curl, quote, urlOf } from '../page/curl.js'
import { inkOf, told } from '../page/chart.js'
import { matches, placeOf, shown } from '../page/filter.js'

const encode = text => new TextEncoder().encode(text)

test('characters that cannot be seen are shown by their names', () => {
  for (const [text, want] of [
    ['plain ä 漢 🙂', 'plain ä 漢 🙂'],
    ['a\nb\tc', 'a b c'],
    ['\u202egpj.exe', '⟨U+202E⟩gpj.exe'],
    ['\u2066a\u2069', '⟨U+2066⟩a⟨U+2069⟩'],
    ['a\u200bb\ufeff', 'a⟨U+200B⟩b⟨U+FEFF⟩'],
    ['\u0000\u001b[31m\u0085', '⟨U+0000⟩⟨U+001B⟩[31m⟨U+0085⟩'],
    ['\ud800x', '⟨U+D800⟩x'],
    ['x\udc00', 'x⟨U+DC00⟩'],
    ['\u{e0041}tag', '⟨U+E0041⟩tag'],
  ]) assert.equal(visible(text), want)
  assert.equal(visible('a\r\nb\rc'), 'a b⟨U+000D⟩c')
  assert.deepEqual(parts('a\r\nb\r\r\n\nc'), [{ text: 'a\nb' }, { text: 'U+000D', control: true }, { text: '\n\nc' }])
  assert.deepEqual(parts('a\u202eb'), [{ text: 'a' }, { text: 'U+202E', control: true }, { text: 'b' }])
})

test('numbers are short', () => {
  assert.deepEqual([0, 999, 1000, 1234, 99949, 123456, 5e6].map(bytes), ['0 B', '999 B', '1.0 kB', '1.2 kB', '99.9 kB', '123 kB', '5.0 MB'])
  assert.deepEqual([0, 0.04, 9.94, 12.3, 999, 1500, 61000, 7.2e6, -20].map(milliseconds), ['0 ms', '0 ms', '9.9 ms', '12 ms', '999 ms', '1.5 s', '1 min', '2 h', '-20 ms'])
  assert.equal(count(1234567), '1,234,567')
  assert.equal(plural(1, 'event') + plural(2000, 'event'), '1 event2,000 events')
})

test('a text is not cut within a character', () => {
  assert.equal(clip('a🙂b', 2), 'a')
  assert.equal(clip('a🙂b', 3), 'a🙂')
  assert.equal(clip('ab', 5), 'ab')
})

test('what the middleware has replaced is known', () => {
  assert.equal(masked('REDACTED'), 'redacted')
  assert.equal(masked('hmac-sha256:' + '0a'.repeat(32)), 'hashed')
  for (const other of ['redacted', 'REDACTED ', 'hmac-sha256:00', 7, undefined]) assert.equal(masked(other), '')
})

// Back to JSON, without spaces.
function write(node) {
  switch (node.type) {
    case 'string': return JSON.stringify(node.value)
    case 'array': return `[${node.items.map(write)}]`
    case 'object': return `{${node.members.map(([name, one]) => `${JSON.stringify(name)}:${write(one)}`)}}`
    default: return node.text
  }
}

test('JSON is read without a loss', () => {
  for (const text of [
    '{"a":12345678901234567890,"b":1.10,"c":1E400,"d":-0}', '[[],{},""," ",null,true,false]', '{"a":1,"a":2,"__proto__":3}', '"\\ud800"', '7',
  ]) assert.equal(write(read(text)), text)
  assert.equal(write(read(' { "a" : [ 1 , 2 ] }\n')), '{"a":[1,2]}')
})

test('what is not JSON is refused', () => {
  for (const text of ['', '{', '{"a"}', '[1,]', '{"a":1,}', '01', '1.', '.5', '+1', 'nul', "'a'", '"a', '"\n"', '"\\x"', '1 2', '[1] x', '\u00a01', 'NaN', '{a:1}', ']']) {
    assert.throws(() => JSON.parse(text), SyntaxError, text)
    assert.throws(() => read(text), SyntaxError, text)
  }
  assert.throws(() => read('['.repeat(100000)), /nested deeper/)
})

test('lines are counted up to a limit', () => {
  assert.equal(lines(read('{"a":[1,2],"b":{}}'), 100), 7)
  assert.equal(lines(read(`[${Array(5000).fill(1)}]`), 60), 60)
  assert.equal(member(read('{"a":1,"b":2}'), 'b').text, '2')
})

test('media types are read', () => {
  assert.deepEqual(mediaOf('Multipart/Form-Data; boundary="a;\\"b"; charset=utf-8'), { type: 'multipart/form-data', parameters: { __proto__: null, boundary: 'a;"b', charset: 'utf-8' } })
  assert.deepEqual(mediaOf('a/b;;c; d = e ;f=" g;\\\\" ; d=second;h=').parameters, { __proto__: null, d: 'e', f: ' g;\\', h: '' })
  assert.deepEqual(mediaOf(`a/b; ${' '.repeat(1000)}c=d`).parameters, { __proto__: null })
  assert.deepEqual(mediaOf(undefined), { type: '', parameters: { __proto__: null } })
  assert.deepEqual(['application/json; charset=utf-8', 'application/problem+json', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=a', 'image/png', 'application/x-protobuf', ''].map(short),
    ['json', 'json', 'form', 'multipart', 'png', 'protobuf', ''])
})

// Seconds in which this process computed: that others use the machine, too, does not change it.
function cpu(act) {
  const before = process.cpuUsage()
  act()
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1e6
}

// A header may have 256 KiB, and a body megabytes. What takes the square of that needs minutes.
test('texts that are made to be slow are not', () => {
  const long = 256 << 10
  const data = encode('-'.repeat(1 << 20))
  const form = 'multipart/form-data; boundary='
  const part = header => encode(`--x\r\n${header}\r\n\r\none\r\n--x--`)
  for (const [name, act] of [
    ['a parameter without a value', () => mediaOf('text/plain;' + 'a'.repeat(long))],
    ['spaces', () => mediaOf('text/plain;' + ' '.repeat(long) + 'x')],
    ['a value that is never closed', () => mediaOf('text/plain; a="' + '\\'.repeat(long))],
    ['semicolons', () => mediaOf('text/plain' + ';'.repeat(long))],
    ['what only looks like parameters', () => mediaOf('text/plain;' + ' a ='.repeat(long / 4))],
    ['a media type for the list', () => short('a'.repeat(long))],
    ['the header of a part', () => multipart(form + 'x', part('Content-Disposition: form-data;' + 'a'.repeat(long)))],
    ['the media type of a part', () => raster(multipart(form + 'x', part('Content-Type: text/plain;' + ' '.repeat(long) + 'x'))[0].media, data)],
    ['dashes, and a boundary as long as one may be', () => multipart(form + '-'.repeat(69) + 'x', data)],
    ['dashes, and a boundary that is too long', () => multipart(form + '-'.repeat(4000) + 'x', data)],
    ['dashes, and a boundary that fills the header', () => multipart(form + '-'.repeat(long), data)],
    ['a field that is not UTF-8', () => fields('%ff'.repeat(long * 4))],
    ['fields', () => { fields('&'.repeat(1 << 20) + 'a'); countFields('a&'.repeat(1 << 19)) }],
    ['a string', () => read(`"${'a'.repeat(1 << 20)}"`)],
    ['a string that is never closed', () => assert.throws(() => read('"' + 'a'.repeat(1 << 20)))],
    ['brackets', () => assert.throws(() => read('['.repeat(1 << 20)))],
    ['spaces in JSON', () => assert.throws(() => read('[' + ' '.repeat(1 << 20)))],
    ['a text of nothing that is seen', () => visible('\u202e'.repeat(long))],
    ['a word of nothing that is seen', () => quote('\u202e'.repeat(long))],
    ['a word of quotes', () => quote("'".repeat(1 << 20))],
    ['a URL', () => urlOf({ url: { path: '#'.repeat(long), query: ' '.repeat(long) }, server: { address: 'a'.repeat(long) + '!' } })],
  ]) {
    const got = cpu(act)
    assert.ok(got < 2, `${name}: got ${got} seconds of computing; want at most 2`)
  }
})

test('what is too long to be a boundary is none', () => {
  const media = length => `multipart/mixed; boundary=${'x'.repeat(length)}`
  const body = length => encode(`--${'x'.repeat(length)}\r\n\r\none`)
  assert.equal(kindOf(media(70), { content_base64: '' }, body(70)), 'multipart')
  assert.equal(multipart(media(70), body(70)).length, 1)
  assert.equal(kindOf(media(71), { content_base64: '' }, body(71)), 'hex')
  assert.deepEqual(multipart(media(71), body(71)), [])
})

test('a boundary is found where it begins like itself', () => {
  const list = multipart('multipart/mixed; boundary=-a-ab', encode('x---a---a-ab\r\n\r\none\r\n-----a-a-ab--a-ab\r\n---a-ab--'))
  assert.deepEqual(list.map(part => [textOf(part.data), part.whole]), [['one\r\n-----a-a-ab--a-ab', true]])
})

test('a body is shown as what it is', () => {
  const png = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0)
  const kind = (media, text) => kindOf(media, { content: text }, encode(text))
  assert.equal(kind('application/json', '{}'), 'json')
  assert.equal(kind('text/plain', ' [1]'), 'json')
  assert.equal(kind('application/x-www-form-urlencoded', 'a=b'), 'form')
  assert.equal(kind('text/html', '<b>'), 'text')
  assert.equal(kind('image/svg+xml', '<svg onload=hit()>'), 'text')
  assert.equal(kind('', 'GIF89a'), 'text')
  assert.equal(kind('image/gif', 'GIF89a'), 'image')
  assert.equal(kindOf('image/png', { content_base64: '' }, png), 'image')
  assert.equal(kindOf('image/jpeg', { content_base64: '' }, png), 'hex')
  assert.equal(kindOf('multipart/mixed', { content_base64: '' }, png), 'hex')
  assert.equal(raster('image/svg+xml', encode('<svg>')), '')
})

test('base64 that is none has no bytes', () => {
  assert.deepEqual(bytesOf({ content_base64: 'AP8=' }), Uint8Array.of(0, 255))
  assert.equal(bytesOf({ content_base64: '%%' }), null)
  assert.equal(bytesOf({ truncated: true }), null)
  assert.equal(bytesOf(null), null)
})

test('fields of a form are decoded, in order', () => {
  assert.deepEqual(fields('a=1&b=x+y%26&a=2&c&=d&&e=%zz&f=%ff%C3%A4'), [['a', '1'], ['b', 'x y&'], ['a', '2'], ['c', ''], ['', 'd'], ['e', '%zz'], ['f', '\ufffdä']])
  assert.equal(fields('a&'.repeat(5000), 1000).length, 1000)
  assert.equal(fields('&'.repeat(5000) + 'a', 1000).length, 1)
  assert.deepEqual(['', '&&', 'a', 'a&', '&a&&b=c&', 'a&'.repeat(5000)].map(countFields), [0, 0, 1, 1, 2, 5000])
})

test('parts of a multipart body are listed', () => {
  const body = 'before\r\n--x\r\nContent-Disposition: form-data; name="a"\r\n\r\none\r\n--x\r\nContent-Disposition: form-data; name="f"; filename="../<b>.txt"\r\nContent-Type: text/plain\r\n\r\n--y\r\n\r\n--x--\r\nafter'
  const list = multipart('multipart/form-data; boundary=x', encode(body))
  assert.deepEqual(list.map(({ name, file, media, whole, data }) => [name, file, media, whole, textOf(data)]), [
    ['a', undefined, '', true, 'one'],
    ['f', '../<b>.txt', 'text/plain', true, '--y\r\n'],
  ])
  const cut = multipart('multipart/form-data; boundary=x', encode(body.slice(0, 60)))
  assert.deepEqual(cut.map(part => part.whole), [false])
  assert.equal(multipart('multipart/mixed; boundary=x', encode('--x\r\n'.repeat(5000))).length, 100)
  assert.deepEqual(multipart('multipart/mixed; boundary=x', encode('nothing')), [])
})

test('bytes are dumped', () => {
  const data = Uint8Array.from({ length: 18 }, (_, i) => i + 0x38)
  assert.equal(hex(data), '00000000  38 39 3a 3b 3c 3d 3e 3f  40 41 42 43 44 45 46 47  89:;<=>?@ABCDEFG\n00000010  48 49                                             HI')
  assert.equal(hex(Uint8Array.of(0, 0x7f, 0xff)).slice(-3), '···')
})

const shell = (() => {
  try {
    return execFileSync('bash', ['-c', 'echo bash']).toString().trim()
  } catch {
    return ''
  }
})()

test('a shell reads a quoted word as it was', { skip: shell ? false : 'there is no bash' }, () => {
  for (const word of [
    'plain', '', ' ', "it's", '$(touch /tmp/x)', '`id`', '"', '\\', "\\'", '!!', 'a\nb', 'a\u0001b', '\u0001\'\\!7', '\u202eabc', '~', '=x', '-n', '*', '#', 'ä 🙂', '\u009b31m', 'a\rb', '{a,b}', '\u0085', 'x\u200b9',
  ]) {
    assert.equal(execFileSync('bash', ['-c', `printf '[%s]' ${quote(word)}`]).toString(), `[${word}]`, JSON.stringify(word))
    assert.doesNotMatch(quote(word), /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202e\u200b]/)
  }
})

const event = (request, rest = {}) => ({
  data: { url: { scheme: 'http', path: '/a' }, server: { address: 'example.com', port: 80 }, http: { request: { method: 'GET', header: {}, ...request } }, ...rest },
})

test('the URL is that of the request', () => {
  const url = (url, server) => urlOf({ url, server })
  assert.equal(url({ scheme: 'https', path: '/a%2Fb', query: 'c=d' }, { address: 'example.com', port: 443 }), 'https://example.com/a%2Fb?c=d')
  assert.equal(url({ scheme: 'http', path: '' }, { address: '2001:db8::1', port: 8080 }), 'http://[2001:db8::1]:8080/')
  assert.equal(url({ scheme: 'javascript', path: 'x' }, { address: 7 }), 'http://localhost/x')
  assert.equal(url(undefined, undefined), 'http://localhost/')
})

test('nothing of an event is an option or a file for curl', () => {
  for (const bad of ['@/etc/passwd', '-o/tmp/x', '--config=x', '\r\nX-Injected: 1', 'a\nb']) {
    const command = curl(event({
      method: bad, header: { [bad]: ['x'], 'x-a': [bad] }, cookie: { [bad]: [bad] }, body: { content: bad, truncated: false },
    }, { server: { address: 'example.com', port: 80 }, url: { scheme: bad, path: bad, query: bad } }))
    const words = JSON.parse(execFileSync('bash', ['-c', `curl() { node -e 'console.log(JSON.stringify(process.argv.slice(1)))' -- "$@"; }; ${command}`]).toString())
    assert.match(words[0], /^http:\/\/example\.com\/./)
    for (let i = 1; i < words.length; i++) {
      assert.ok(['--globoff', '--path-as-is', '--request', '--header', '--data-raw'].includes(words[i]), words[i])
      if (words[i] === '--request') assert.match(words[++i], /^[A-Z]+$/)
      else if (words[i] === '--header') assert.match(words[++i], /^[a-z-]+[:;]/)
      else if (words[i] === '--data-raw') assert.equal(words[++i], bad)
    }
    for (const word of words) if (word.startsWith('x-a') || word.startsWith('cookie')) assert.doesNotMatch(word, /[\r\n]/)
  }
})

test('what is not as it was sent is said', () => {
  assert.equal(curl(event({ method: 'GET', header: { accept: ['*/*'], 'user-agent': ['a'] } })),
    "curl http://example.com/a \\\n  --globoff --path-as-is \\\n  --header 'accept: */*' \\\n  --header 'user-agent: a'\n")
  const command = curl(event({ method: 'POST', header: { authorization: ['REDACTED'] }, body: { content: 'a', truncated: true } }))
  assert.match(command, /^# Not as it was sent: values that are redacted, a body that is cut\.\n/)
  assert.match(curl(event({ method: 'PUT', body: { content_base64: 'AP8=', truncated: false } })), /^printf %s AP8= \| base64 -d \| curl .*[\s\S]*--request PUT[\s\S]*--data-binary @-/)
  assert.match(curl(event({ method: 'HEAD' })), /--head/)
  assert.match(curl(event({ method: 'HEAD', body: { content: 'a', truncated: true } })), /--request HEAD[\s\S]*--data-raw a/)
})

const row = (n, more) => ({ n, kind: 'request', method: 'GET', path: '/a', client: '203.0.113.7', signature: 'verified', ...more })
const all = { path: '', method: '', status: '', client: '', kind: '' }

test('each reason has a colour of its own', () => {
  const file = name => readFileSync(new URL(name, import.meta.url), 'utf8')
  const reasons = JSON.parse(file('../schema/report.v1.schema.json')).$defs.losses.items.properties.reason.enum
  const rules = new Map([...file('../page/style.css').matchAll(/^(.*\.ink-.*) \{ color: (.*) \}$/gm)].flatMap(([, names, colour]) => names.split(', ').map(name => [name, colour])))
  const colours = reasons.map(reason => rules.get(`.ink-${inkOf(reason)}`))
  assert.equal(new Set(colours).size, 13, colours.join('\n'))
  assert.ok(!colours.includes(undefined), colours.join('\n'))
  assert.equal(inkOf('of a later version'), 'muted')
  assert.equal(inkOf('toString'), 'muted')
})

test('reports are spread over their seconds, and added up', () => {
  const one = (pipeline, from, to, delivered, lost = {}) => ({ pipeline, from: from * 1000, to: to * 1000, delivered, dropped: lost })
  const { seconds, until } = told([one(1, 1000, 1010, 20), one(2, 1004, 1006, 8, { memory: 4 }), one(1, 1010, 1010.5, 3), one(3, 700, 701, 5)], 1011000)
  const at = second => seconds.find(one => one[0] === second)?.[1]
  assert.deepEqual([1003, 1004, 1005, 1006, 1010].map(second => at(second).delivered), [2, 6, 6, 2, 3])
  assert.deepEqual([1003, 1004, 1006].map(second => at(second).lost.get('memory')), [undefined, 2, undefined])
  assert.equal(at(700), undefined) // more than five minutes ago
  assert.equal(until, 1006) // the second pipeline's last report; the third has ended
  // After a long pause, one report may be of a year.
  const got = cpu(() => told(Array.from({ length: 3000 }, (_, i) => one(i, 0, 365 * 86400, 1, { timeout: 1 })), 365 * 86400e3))
  assert.ok(got < 2, `got ${got} seconds of computing; want at most 2`)
})

test('rows are filtered', () => {
  for (const [filter, more, want] of [
    [{}, {}, true],
    [{ path: '/b' }, {}, false],
    [{ path: 'x=1' }, { query: 'X=1' }, true],
    [{ path: 'blog' }, { host: 'blog.example.com' }, true],
    [{ method: 'POST' }, {}, false],
    [{ status: '5' }, { status: 503 }, true],
    [{ status: '5' }, { status: 404 }, false],
    [{ status: '5' }, {}, false],
    [{ status: 'none' }, {}, true],
    [{ status: 'none' }, { status: 200 }, false],
    [{ status: 'none' }, { kind: 'report' }, false],
    [{ client: '203.0' }, {}, true],
    [{ client: '203.1' }, {}, false],
    [{ client: '203' }, { client: undefined }, false],
    [{ kind: 'report' }, {}, false],
    [{ kind: 'report' }, { kind: 'report' }, true],
    [{ kind: 'problem' }, {}, false],
    [{ kind: 'problem' }, { problems: 2 }, true],
    [{ kind: 'gap' }, {}, false],
  ]) assert.equal(matches(row(1, more), { ...all, ...filter }), want, JSON.stringify([filter, more]))
})

test('gaps are shown before their rows, whatever is filtered', () => {
  const rows = [row(5), row(6, { path: '/b' }), row(9)]
  const gap = first => ({ source: 's', boot: 'b', first, last: first, row: 6 })
  const gaps = new Map([[6, [gap(3), gap(7)]]])
  const kinds = filter => shown(rows, gaps, { ...all, ...filter }).map(item => item.gap ? `gap ${item.gap.first}` : item.row.n)
  assert.deepEqual(kinds({}), [5, 'gap 3', 'gap 7', 6, 9])
  assert.deepEqual(kinds({ path: '/a' }), [5, 'gap 3', 'gap 7', 9])
  assert.deepEqual(kinds({ kind: 'gap' }), ['gap 3', 'gap 7'])
  assert.deepEqual(kinds({ kind: 'request' }), [5, 6, 9])
  gaps.set(0, [gap(1)])
  assert.deepEqual(kinds({ path: '/a' }), ['gap 1', 5, 'gap 3', 'gap 7', 9])
  gaps.delete(0)
  assert.deepEqual([1, 5, 6, 7, 9, 10].map(n => placeOf(shown(rows, gaps, all), n)), [0, 0, 1, 4, 4, 5])
})
