// Parses each LogQL query of a JSON list on stdin; prints the syntax tree's nodes as [name, text], errors as "⚠".
// The first argument is the folder in which the grammar is installed.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { parser } = createRequire(process.argv[2] + "/")("@grafana/lezer-logql");

const parse = (query) => {
  const nodes = [];
  parser.parse(query).iterate({ enter: ({ name, from, to }) => { nodes.push([name, query.slice(from, to)]); } });
  return nodes;
};
console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(parse)));
