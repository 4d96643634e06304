// A reader of JSON that changes nothing: numbers keep their digits, and names that are
// used twice are there twice. JSON.parse does neither.

const deepest = 200

/**
 * Reads a text and returns a node: {type, ...}, with `text` for numbers and literals,
 * `value` for strings, `items` for arrays and `members` ([name, node]) for objects.
 * Throws a SyntaxError for what is not JSON, or nested too deeply to be shown.
 */
export function read(text) {
  let at = 0
  const space = /[ \t\n\r]*/y
  const word = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y
  const quoted = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y

  function fail() {
    throw new SyntaxError(`not JSON at character ${at + 1}`)
  }
  function skip() {
    space.lastIndex = at
    space.exec(text)
    at = space.lastIndex
  }
  function take(sign) {
    skip()
    if (text[at] !== sign) return false
    at++
    return true
  }
  function string() {
    skip()
    quoted.lastIndex = at
    const found = quoted.exec(text)
    if (!found) fail()
    at = quoted.lastIndex
    return JSON.parse(found[0])
  }
  function value(depth) {
    if (depth > deepest) throw new SyntaxError(`nested deeper than ${deepest}`)
    skip()
    if (text[at] === '"') return { type: 'string', value: string() }
    if (take('[')) {
      const items = []
      if (take(']')) return { type: 'array', items }
      do items.push(value(depth + 1)); while (take(','))
      if (!take(']')) fail()
      return { type: 'array', items }
    }
    if (take('{')) {
      const members = []
      if (take('}')) return { type: 'object', members }
      do {
        const name = string()
        if (!take(':')) fail()
        members.push([name, value(depth + 1)])
      } while (take(','))
      if (!take('}')) fail()
      return { type: 'object', members }
    }
    word.lastIndex = at
    const found = word.exec(text)
    if (!found) fail()
    at = word.lastIndex
    const first = found[0][0]
    return { type: first === 't' || first === 'f' ? 'boolean' : first === 'n' ? 'null' : 'number', text: found[0] }
  }

  const node = value(0)
  skip()
  if (at < text.length) fail()
  return node
}

/** How many lines a node takes when all of it is open, up to a limit. */
export function lines(node, most) {
  const inner = node.type === 'array' ? node.items : node.type === 'object' ? node.members.map(member => member[1]) : []
  if (inner.length === 0) return 1
  let n = 2
  for (const one of inner) {
    n += lines(one, most - n)
    if (n >= most) return most
  }
  return n
}

/** The member of an object with a name, if there is one. */
export function member(node, name) {
  return node?.type === 'object' ? node.members.find(one => one[0] === name)?.[1] : undefined
}
