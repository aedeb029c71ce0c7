/**
 * Parser of `WWW-Authenticate` (RFC 9110 section 11): any number of challenges in one field, each a scheme with either
 * parameters (quoted or not, in any order, with optional white space) or a token68.
 */

export interface Challenge {
  /** Lower case: "bearer", "basic". */
  readonly scheme: string;
  /** Names in lower case. */
  readonly parameters: ReadonlyMap<string, string>;
}

const TOKEN = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y;
const SEPARATORS = /[\s,]*/y;
const EQUALS = /\s*=\s*/y;
const QUOTED = /"((?:[^"\\]|\\.)*)"/y;
// Unquoted values should be tokens; URLs are seen in practice.
const UNQUOTED = /[^\s,"]+/y;
const TOKEN68 = /[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))/y;
const SPACES = /[ \t]*/y;

/** Parses a field value. What follows a syntax error is dropped: half a challenge is better than none. */
export function parseChallenges(field: string): Challenge[] {
  let position = 0;
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = position;
    const match = pattern.exec(field);
    if (match !== null) position = pattern.lastIndex;
    return match;
  };

  const challenges: { scheme: string; parameters: Map<string, string> }[] = [];
  while (position < field.length) {
    take(SEPARATORS);
    const name = take(TOKEN)?.[0].toLowerCase();
    if (name === undefined) break;
    const current = challenges.at(-1);
    const afterName = position;
    if (current !== undefined && take(EQUALS) !== null) {
      const quoted = take(QUOTED);
      const value = quoted === null ? take(UNQUOTED)?.[0] : quoted[1].replace(/\\(.)/g, "$1");
      if (value === undefined) break;
      current.parameters.set(name, value);
      continue;
    }
    position = afterName;
    challenges.push({ scheme: name, parameters: new Map() });
    take(SPACES);
    take(TOKEN68);
  }
  return challenges;
}
