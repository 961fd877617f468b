// Asks an endpoint through OpenAI's Node client, whose default is base64, and prints what it got.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused", maxRetries: 0 });
const answer = await client.embeddings.create({ model: "fake", input: ["one", "two words"] });
const models = await client.models.list();
let failure;
try {
  await client.embeddings.create({ model: "other", input: "one" });
} catch (error) {
  failure = { type: error.constructor.name, code: error.code };
}
console.log(
  JSON.stringify({
    vectors: answer.data.map((item) => Array.from(item.embedding)),
    tokens: answer.usage.total_tokens,
    models: models.data.map((model) => model.id),
    failure,
  }),
);
