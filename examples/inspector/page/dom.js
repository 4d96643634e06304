// The one place where elements are made. What comes from an event gets in as text.

import { parts, clip, count } from './text.js'

export const $ = id => document.getElementById(id)

/** An element with a class, and with texts and elements in it. */
export function el(tag, className, ...children) {
  const node = document.createElement(tag)
  if (className) node.className = className
  node.append(...children.filter(child => child !== null && child !== undefined && child !== ''))
  return node
}

export function button(text, title, act) {
  const node = el('button', '', text)
  node.type = 'button'
  if (title) node.title = title
  node.addEventListener('click', act)
  return node
}

const mostParts = 100

/** Puts a text of an event into an element, with names for characters that are not seen. */
export function put(node, text) {
  const list = parts(text)
  for (const part of list.slice(0, mostParts)) node.append(part.control ? el('span', 'ctl', part.text) : part.text)
  if (list.length > mostParts) {
    // A text of nothing but controls would be an element for each.
    node.append(list.slice(mostParts).map(part => part.control ? `⟨${part.text}⟩` : part.text).join(''))
  }
  return node
}

/** A text of any length: what does not fit is there when it is asked for. */
export function long(tag, className, text, step) {
  const node = el(tag, className)
  let at = 0
  const more = button('', '', () => {
    more.remove()
    next()
  })
  function next() {
    let piece = clip(text.slice(at, at + step + 1), step)
    if (text.startsWith('\r\n', at + piece.length - 1)) piece += '\n' // not half a line's end, either
    at += piece.length || 1
    put(node, piece)
    if (at < text.length) {
      more.textContent = `Show more of ${count(text.length)} characters`
      more.className = 'more'
      node.append(more)
    }
  }
  next()
  return node
}
