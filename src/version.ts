import manifest from "../package.json" with { type: "json" };

/** The version of this program (semver). */
export const version: string = manifest.version;
