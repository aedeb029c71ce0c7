/** Member names: byte strings (see entry.ts) taken apart without looking at any file system. */

/** Longest path and path element Linux has a use for (PATH_MAX with its NUL, NAME_MAX). */
export const MAX_PATH_BYTES = 4095;
export const MAX_ELEMENT_BYTES = 255;

/**
 * Cleans a name lexically: repeated slashes and "." elements vanish, ".." takes the element before it away, a
 * trailing slash goes. What is left of nothing is "."; an absolute name stays absolute, and ".." cannot lead above "/".
 * A relative name may come out starting with "..".
 */
export function cleanName(name: string): string {
  if (isClean(name)) return name;
  const absolute = name.startsWith("/");
  const kept: string[] = [];
  for (const element of name.split("/")) {
    if (element === "" || element === ".") continue;
    if (element !== "..") kept.push(element);
    else if (kept.length > 0 && kept[kept.length - 1] !== "..") kept.pop();
    else if (!absolute) kept.push("..");
  }
  return (absolute ? "/" : "") + kept.join("/") || ".";
}

/** Whether a cleaned name leads out of the directory it is relative to. */
export function escapesRoot(cleaned: string): boolean {
  return cleaned === ".." || cleaned.startsWith("../");
}

const SLASH = 0x2f;
const DOT = 0x2e;

/** The common case, decided without allocating: no element is empty or starts with a dot, and no slash ends the name. */
function isClean(name: string): boolean {
  let start = true;
  for (let i = 0; i < name.length; i++) {
    const c = name.charCodeAt(i);
    if (start && (c === SLASH || c === DOT)) return false;
    start = c === SLASH;
  }
  return !start;
}
