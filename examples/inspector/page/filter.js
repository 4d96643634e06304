// Which rows are shown.

/** Says whether a row is one of those that are asked for. */
export function matches(row, filter) {
  if (filter.kind === 'gap') return false
  if (filter.kind === 'problem') {
    if (!row.problems) return false
  } else if (filter.kind && row.kind !== filter.kind) return false
  if (filter.method && row.method !== filter.method) return false
  if (filter.status === 'none') {
    if (row.status || row.kind !== 'request') return false
  } else if (filter.status && Math.floor((row.status ?? 0) / 100) !== Number(filter.status)) return false
  if (filter.client && !(row.client ?? '').toLowerCase().includes(filter.client)) return false
  if (!filter.path) return true
  return `${row.host ?? ''}${row.path ?? ''}${row.query ? '?' + row.query : ''}`.toLowerCase().includes(filter.path)
}

/**
 * What the list shows, in order: rows that match, each with the gaps before it. Gaps are
 * shown whatever is asked for, as nobody knows what is missing, but for single kinds.
 */
export function shown(rows, gaps, filter) {
  const list = []
  const withGaps = !filter.kind || filter.kind === 'gap'
  const add = (gap, n) => list.push({ n, gap, key: `gap ${gap.source} ${gap.boot} ${gap.first}` })
  if (withGaps && rows.length > 0) {
    for (const gap of gaps.get(0) ?? []) add(gap, rows[0].n) // before all that is kept
  }
  for (const row of rows) {
    if (withGaps && gaps.has(row.n)) {
      for (const gap of gaps.get(row.n)) add(gap, row.n)
    }
    if (matches(row, filter)) list.push({ n: row.n, row, key: row.n })
  }
  return list
}

/** The first place in a list, which is sorted by n, of what is not before n. */
export function placeOf(list, n) {
  let low = 0
  let high = list.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (list[middle].n < n) low = middle + 1
    else high = middle
  }
  return low
}
