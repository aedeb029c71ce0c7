/** UUIDs of layers, as text: upper case, `8-4-4-4-12` hexadecimal digits (lsmt.md section 2.3). */
export const NULL_UUID = "00000000-0000-0000-0000-000000000000";

/** The canonical form of `text` in either case, or null when it is not a UUID. */
export function parseUuid(text: string): string | null {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text) ? text.toUpperCase() : null;
}

/** A random version-4 UUID. */
export function randomUuid(): string {
  return crypto.randomUUID().toUpperCase();
}
