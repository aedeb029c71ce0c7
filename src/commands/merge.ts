/** `overlaybd-merge`: flattens all layers of an image, a writable one included, into one layer blob (cli.md). */
import { availableParallelism } from "node:os";
import { OverlaybdError } from "../error.ts";
import { LayerFile } from "../format/layerfile.ts";
import { openWritableLayer } from "../format/lsmt/pair.ts";
import type { WritableLayer } from "../format/lsmt/writable.ts";
import { CODEC_LZ4 } from "../format/zfile/blocks.ts";
import { loadImageConfig } from "../image/config.ts";
import { mergeImage } from "../image/merge.ts";
import { type OpenImage, openImage } from "../image/open.ts";
import { imageOptions } from "./_image.ts";
import { defineTool, flag, option, optionalPositional, optionOr, positional } from "./_tool.ts";

export const tool = defineTool({
  name: "overlaybd-merge",
  summary: "Merge the layers of an image into one",
  arguments: {
    config: positional("image_config_path", "existing", "Image config"),
    output: optionalPositional("output", "text", "Output; replaced when it exists"),
    compress: flag(["--compress"], "Compress to a ZFile; --compress=false does not", true),
    tar: flag(["-t"], "Without effect; upstream's tool takes it"),
    upload: option(["--upload"], "text", "Upload while writing"),
    uploadPiece: optionOr(["--upload_bs"], "unsigned", 262144, "Upload in pieces of this many KiB"),
    credentials: option(["--cred_file_path"], "existing", "Credentials for the upload"),
    tlsKey: option(["--tls_key_path"], "existing", "Key of the client certificate for the upload"),
    tlsCertificate: option(["--tls_cert_path"], "existing", "Client certificate for the upload"),
    service: option(["--service_config_path"], "existing", "Service config"),
    verbose: flag(["--verbose"], "Say more"),
  },
  async run({ config: path, output, compress, upload, service }) {
    if (upload !== undefined) throw new OverlaybdError("E_UNSUPPORTED", "--upload is not supported yet");
    if (output === undefined) throw new OverlaybdError("E_USAGE", "no output file is given");
    const config = await loadImageConfig(path);
    const options = await imageOptions({ service_config_path: service });
    const image = await openImage(config, options);
    try {
      const upper = config.upper && openWritableLayer(config.upper.data, config.upper.index);
      try {
        await write(image, upper, output, compress);
      } finally {
        upper?.close();
      }
    } finally {
      await image.close();
    }
    // The digest of the upload would stand here; programs read the line.
    process.stderr.write("\n");
    return 0;
  },
});

async function write(
  image: OpenImage,
  upper: WritableLayer | undefined,
  path: string,
  compress: boolean,
): Promise<void> {
  const threads = availableParallelism();
  const zfile = {
    codec: CODEC_LZ4,
    blockSize: 4096,
    checksum: true,
    overwriteHeader: false,
    threads,
  } as const;
  const file = new LayerFile(path, { replace: true, zfile: compress ? zfile : undefined });
  try {
    await mergeImage(image, upper, file);
    file.finish();
  } finally {
    file.abandon();
  }
}
