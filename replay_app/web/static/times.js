// Times as people write them: "2026-01-10", "2026-01-10 14:00", "2h ago", "yesterday". Without a
// zone a time is local. A relative time is fixed when it is read, so that a plan and its start agree.

const UNITS = { s: 1, sec: 1, second: 1, m: 60, min: 60, minute: 60, h: 3600, hour: 3600, d: 86400, day: 86400, w: 604800, week: 604800 };
const RELATIVE = /^(\d+(?:\.\d+)?)\s*([a-z]+?)s?(?:\s+ago)?$/;
const DATE = /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,3})\d*)?)?\s*(Z|UTC|[+-]\d\d:?\d\d)?)?$/i;

function midnight(now, days) {
  return new Date(now.getFullYear(), now.getMonth(), now.getDate() + days);
}

function zoned(numbers, zone) {
  const moment = new Date(Date.UTC(...numbers));
  if (/^(z|utc)$/i.test(zone)) return moment;
  const [, sign, hours, minutes] = /^([+-])(\d\d):?(\d\d)$/.exec(zone);
  return new Date(moment - (sign === "-" ? -1 : 1) * (Number(hours) * 60 + Number(minutes)) * 60000);
}

// Return the moment as a Date, or null if the text is no time.
export function readTime(text, now = new Date()) {
  const plain = text.trim().toLowerCase();
  if (plain === "now") return now;
  if (plain === "today") return midnight(now, 0);
  if (plain === "yesterday") return midnight(now, -1);
  const relative = RELATIVE.exec(plain);
  if (relative) {
    const seconds = UNITS[relative[2]];
    return seconds ? new Date(now - relative[1] * seconds * 1000) : null;
  }
  const found = DATE.exec(plain);
  if (!found) return null;
  const [, year, month, day, hour = 0, minute = 0, second = 0, part = ""] = found;
  const numbers = [year, month - 1, day, hour, minute, second, part.padEnd(3, "0")].map(Number);
  const exists = new Date(Date.UTC(numbers[0], numbers[1], numbers[2])).getUTCDate() === numbers[2] && hour < 24 && minute < 60 && second < 60;
  if (!exists || numbers[1] > 11) return null;
  return found[8] ? zoned(numbers, found[8]) : new Date(...numbers);
}
