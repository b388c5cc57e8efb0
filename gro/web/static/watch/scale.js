// From numbers to places and words.

// A number as a person reads it.
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

// A place on a horizontal axis.  Tokens are many.
export function place(axis, value) {
  const [size, unit] = axis === "tokens" ? [[1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([least]) => Math.abs(value) >= least) ?? [1, ""] : [1, ""];
  return number(value / size) + unit;
}

// About `count` round numbers from low to high: steps of 1, 2 or 5 times a power of ten.
export function ticks(low, high, count, whole = false) {
  const rough = (high - low) / Math.max(count, 1);
  if (!(rough > 0) || !Number.isFinite(rough)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// The range of what is drawn; null where there is nothing.
export function range(arrays) {
  let low = Infinity, high = -Infinity;
  for (const array of arrays) {
    for (const value of array ?? []) {
      if (value === null) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : null;
}

// Room above and below; a constant gets some too, and what differs by rounding only is one.
export function padded([low, high]) {
  const size = Math.max(Math.abs(low), Math.abs(high));
  const room = high - low > 1e-9 * size ? (high - low) * 0.05 : size * 0.1 || 1;
  return [low - room, high + room];
}

// "M1 2L3 4": a line with a gap wherever a value is null.  A point between two gaps is a dot.
export function path(xs, ys, x, y) {
  let told = "", pen = false;
  for (let i = 0; i < xs.length; i += 1) {
    if (ys[i] === null || ys[i] === undefined) {
      pen = false;
      continue;
    }
    told += `${pen ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
    if (!pen && (i + 1 === xs.length || ys[i + 1] === null)) told += "h0.01";
    pen = true;
  }
  return told;
}

// The area between two lines, a closed shape for each stretch without a gap.
export function area(xs, lows, highs, x, y) {
  let told = "", begin = 0;
  const close = (end) => {
    if (end - begin < 2) return;
    const point = (values) => (i) => `${x(xs[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`;
    const places = Array.from({ length: end - begin }, (_, k) => begin + k);
    told += `M${places.map(point(highs)).join("L")}L${places.reverse().map(point(lows)).join("L")}Z`;
  };
  for (let i = 0; i <= xs.length; i += 1) {
    if (i === xs.length || lows[i] === null || highs[i] === null) {
      close(i);
      begin = i + 1;
    }
  }
  return told;
}

// The index of the value next to `wanted` in a list that need not be in order; -1 where it is empty.
export function nearest(values, wanted) {
  let best = -1, gap = Infinity;
  for (let i = 0; i < values.length; i += 1) {
    const far = Math.abs(values[i] - wanted);
    if (far < gap) {
      best = i;
      gap = far;
    }
  }
  return best;
}
