/** The image config, `config.v1.json`: which layers make a virtual disk (image-config.md section 1). */
import { access } from "node:fs/promises";
import { join } from "node:path";
import { OverlaybdError } from "../error.ts";
import { type DownloadConfig, decodeDownload } from "../service/config.ts";
import { Fields } from "../service/fields.ts";

/** Most read-only layers of a stack (lsmt.md section 11). */
export const MAX_LOWERS = 255;

/** Absent strings are "", absent numbers 0, as in the file. */
export interface ImageConfig {
  /** Where the config came from, for error messages. */
  readonly name: string;
  /** Prefix of blob URLs; required as soon as a layer is remote. */
  readonly repoBlobUrl: string;
  /** Read-only layers, bottom first. */
  readonly lowers: readonly LowerConfig[];
  /** The writable layer; absent: the disk is read-only. */
  readonly upper?: UpperConfig;
  readonly resultFile: string;
  /** Background download; absent: as the service config says. */
  readonly download?: DownloadConfig;
  /** The last of `lowers` carries a trace instead of data and is no part of the disk. */
  readonly accelerationLayer: boolean;
  readonly recordTracePath: string;
}

export interface LowerConfig {
  readonly file: string;
  readonly dir: string;
  readonly digest: string;
  /** Size of the remote blob in bytes; 0: not known. */
  readonly size: number;
  /** Ours: what the layer's descriptor says of the Merkle tree in the blob (docs/verity.md). */
  readonly verity: string;
  /** TurboOCI: where the file contents are. */
  readonly targetFile: string;
  readonly targetDigest: string;
  readonly gzipIndex: string;
}

export interface UpperConfig {
  readonly index: string;
  readonly data: string;
  /** TurboOCI: the tar whose contents the layer refers to. */
  readonly target: string;
  readonly gzipIndex: string;
}

/** Reads an image config. @throws OverlaybdError E_CONFIG naming file and key. */
export async function loadImageConfig(file: string): Promise<ImageConfig> {
  return decode(await Fields.load(file), file);
}

/** Parses an image config. `name` is what to call it in errors. @throws OverlaybdError E_CONFIG */
export function parseImageConfig(text: string, name: string): ImageConfig {
  return decode(Fields.parse(text, name), name);
}

function decode(fields: Fields, name: string): ImageConfig {
  const config: ImageConfig = {
    name,
    repoBlobUrl: fields.string("repoBlobUrl"),
    lowers: fields.objects("lowers").map(decodeLower),
    upper: decodeUpper(fields.object("upper")),
    resultFile: fields.string("resultFile"),
    download: fields.has("download") ? decodeDownload(fields.object("download")) : undefined,
    accelerationLayer: fields.boolean("accelerationLayer"),
    recordTracePath: fields.string("recordTracePath"),
  };
  const data = dataLowers(config);
  if (data.length > MAX_LOWERS)
    throw fields.wrong("lowers", `has ${data.length} layers; ${MAX_LOWERS} is the limit`);
  if (data.length === 0 && !config.upper) {
    throw fields.wrong(
      "lowers",
      "is empty and there is no upper layer (index and data): there is nothing to show",
    );
  }
  return config;
}

function decodeLower(fields: Fields): LowerConfig {
  return {
    file: fields.string("file"),
    dir: fields.string("dir"),
    digest: fields.string("digest"),
    size: fields.unsigned("size", 0, Number.MAX_SAFE_INTEGER),
    verity: fields.string("verity"),
    targetFile: fields.string("targetFile"),
    targetDigest: fields.string("targetDigest"),
    gzipIndex: fields.string("gzipIndex"),
  };
}

function decodeUpper(fields: Fields): UpperConfig | undefined {
  const upper = {
    index: fields.string("index"),
    data: fields.string("data"),
    target: fields.string("target"),
    gzipIndex: fields.string("gzipIndex"),
  };
  return upper.index === "" || upper.data === "" ? undefined : upper;
}

/** The lowers that hold data, bottom first. */
export function dataLowers(
  config: Pick<ImageConfig, "lowers" | "accelerationLayer">,
): readonly LowerConfig[] {
  return config.accelerationLayer ? config.lowers.slice(0, -1) : config.lowers;
}

/**
 * The local file that layer `lower` is opened from: the first that exists, or null when the layer has to come from the
 * registry (image-config.md section 1.1). Unlike upstream an empty `dir` does not mean the root directory.
 */
export async function localFile(lower: LowerConfig): Promise<string | null> {
  const candidates = lower.file === "" ? [] : [lower.file];
  if (lower.dir !== "") {
    for (const name of ["overlaybd.commit", ".commit", "overlaybd.sealed"])
      candidates.push(join(lower.dir, name));
  }
  for (const path of candidates) {
    if (await exists(path)) return path;
  }
  return null;
}

async function exists(path: string): Promise<boolean> {
  try {
    await access(path);
    return true;
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return false;
    throw new OverlaybdError("E_IO", `cannot look at layer file ${path}: ${message}`, { cause });
  }
}
