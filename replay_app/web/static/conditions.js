// Conditions on fields, between the rows of the form and the members of a filter. Only functions.

export const OPERATORS = [["eq", "="], ["ne", "≠"], ["gte", "≥"], ["gt", ">"], ["lte", "≤"], ["lt", "<"], ["in", "is one of"], ["exists", "exists"]];
const NUMBERS = new Set(["int", "long", "double", "decimal", "number", "int32", "int64"]);
const OBJECT_ID = /^[0-9a-f]{24}$/i;
const DATE = /^\d{4}-\d\d-\d\d([T ].*)?$/;

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// What a person's text means at a field whose stored types are known (or none, if they are not).
export function readValue(text, types = []) {
  const kinds = new Set(types.map((one) => one.toLowerCase()));
  const plain = text.trim();
  if ((kinds.has("date") || kinds.has("datetime")) && DATE.test(plain)) {
    const moment = new Date(plain.replace(" ", "T"));
    if (!Number.isNaN(moment.valueOf())) return { $date: moment.toISOString() };
  }
  if (kinds.has("objectid") && OBJECT_ID.test(plain)) return { $oid: plain };
  if (kinds.has("decimal128") && !kinds.has("string") && /^-?\d+(\.\d+)?$/.test(plain)) return { $numberDecimal: plain };
  const value = json(plain);
  const isTextOnly = (kinds.has("string") || kinds.has("text")) && ![...kinds].some((kind) => NUMBERS.has(kind));
  if (isTextOnly && typeof value === "number") return plain;
  return value === undefined || Array.isArray(value) ? plain : value;
}

function readOne({ operator, text }, types) {
  if (operator === "exists") return !/^(no|false|0)$/i.test(text.trim());
  if (operator !== "in") return readValue(text, types);
  const listed = json(text);
  return Array.isArray(listed) ? listed : text.split(",").map((one) => readValue(one, types));
}

// The member `fields` of the rows [{path, operator, text}]; rows without a path say nothing.
export function fieldsOf(rows, typesOf = () => []) {
  const fields = {};
  for (const row of rows.filter((one) => one.path.trim())) {
    const path = row.path.trim();
    const value = readOne(row, typesOf(path));
    const here = rows.filter((one) => one.path.trim() === path);
    if (row.operator === "eq" && here.length === 1) fields[path] = value;
    else fields[path] = { ...fields[path], [row.operator === "eq" ? "in" : row.operator]: row.operator === "eq" ? [value] : value };
  }
  return fields;
}

const isConditions = (value) => typeof value === "object" && value !== null && !Object.keys(value).some((name) => name.startsWith("$"));
const written = (value) => (typeof value === "string" && json(value) === undefined ? value : JSON.stringify(value));

// The rows that a member `fields` is made of.
export function rowsOf(fields = {}) {
  return Object.entries(fields).flatMap(([path, value]) => {
    if (!isConditions(value)) return [{ path, operator: "eq", text: written(value) }];
    return Object.entries(value).map(([operator, one]) => ({ path, operator, text: written(one) }));
  });
}
