// Registers three users through the bulk queue and reads the three replies. Needs amqplib.
//
// AMQP_URL is the broker's URL. JOB is part of each message id: run again with the same value, it registers no user
// twice and gets the same replies.

const amqp = require("amqplib");

const NAMESPACE = process.env.NAMESPACE ?? "registration";
const JOB = process.env.JOB ?? "example";
const REPLIES = "amq.rabbitmq.reply-to"; // replies to this channel, without a queue

async function main() {
  const connection = await amqp.connect(process.env.AMQP_URL);
  const channel = await connection.createConfirmChannel();
  // An unroutable message is returned, but confirmed too.
  channel.on("return", (message) => {
    throw new Error(`${message.properties.messageId} was returned: is muster running?`);
  });

  const waiting = new Map(["ann", "bob", "eve"].map((name) => [`${JOB}-${name}`, name]));
  const replied = new Promise((resolve) => {
    channel.consume(REPLIES, onReply, { noAck: true });

    function onReply(reply) {
      const outcome = JSON.parse(reply.content);
      const name = waiting.get(reply.properties.messageId);
      if (outcome.outcome === "registered") {
        console.log(name, "registered", outcome.user._id);
      } else {
        console.log(name, outcome.outcome, outcome.code, outcome.errors ?? []);
      }
      waiting.delete(reply.properties.messageId);
      if (waiting.size === 0) resolve();
    }
  });

  for (const [messageId, name] of waiting) {
    const user = {
      fullname: { firstname: name[0].toUpperCase() + name.slice(1) },
      email: `${messageId}@example.com`,
      password: `secret-of-${name}`,
    };
    channel.publish(NAMESPACE, "bulk", Buffer.from(JSON.stringify(user)), {
      type: "register",
      messageId,
      contentType: "application/json",
      persistent: true,
      mandatory: true,
      replyTo: REPLIES,
      headers: { contract: "register" },
    });
  }
  await channel.waitForConfirms();
  await replied;
  await connection.close();
}

main();
