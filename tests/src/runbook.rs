//! What grpcurl does, from first principles: it knows no `.proto`. It asks the server for its descriptors by
//! reflection, turns JSON into a message, calls the method and turns the answer into JSON.

use anyhow::{Context as _, Result, bail, ensure};
use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message as _, prost_types::FileDescriptorProto};
use serde_json::Value;
use tokio_stream::{StreamExt as _, iter};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::admin::Admin;

/// A client that learned the API from the server.
#[derive(Debug)]
pub struct Grpcurl<'a> {
    admin: &'a Admin,
}

impl<'a> Grpcurl<'a> {
    /// A client on an open connection.
    pub fn new(admin: &'a Admin) -> Self {
        Self { admin }
    }

    /// `grpcurl ADDRESS list`.
    pub fn list(&self) -> Result<Vec<String>> {
        self.admin.with_channel(async |channel| {
            let answer = reflect(&channel, MessageRequest::ListServices(String::new())).await?;
            let MessageResponse::ListServicesResponse(list) = answer else {
                bail!("reflection answers {answer:?}");
            };
            Ok(list.service.into_iter().map(|service| service.name).collect())
        })
    }

    /// `grpcurl -d JSON ADDRESS SERVICE/METHOD`. The inner result is the server's.
    pub fn call(&self, method: &str, json: &str) -> Result<Result<Value, Status>> {
        self.admin.with_channel(async |channel| {
            let (service, name) = method.split_once('/').context("a method is SERVICE/METHOD")?;
            let pool = describe(&channel, service).await?;
            let service = pool.get_service_by_name(service).with_context(|| format!("no service {service}"))?;
            let descriptor = service.methods().find(|method| method.name() == name);
            let descriptor = descriptor.with_context(|| format!("no method {name}"))?;

            let mut deserializer = serde_json::Deserializer::from_str(json);
            let message = DynamicMessage::deserialize(descriptor.input(), &mut deserializer)
                .with_context(|| format!("{json} as {}", descriptor.input().full_name()))?;
            deserializer.end()?;

            let mut client = Grpc::new(channel);
            client.ready().await?;
            let path = PathAndQuery::try_from(format!("/{method}"))?;
            let answer = match client.unary(Request::new(message.encode_to_vec()), path, Raw).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => return Ok(Err(status)),
            };
            let answer = DynamicMessage::decode(descriptor.output(), answer.as_slice())?;
            Ok(Ok(serde_json::to_value(&answer)?))
        })
    }
}

/// The file that has the service, and all files that it needs, in an order in which they can be added.
async fn describe(channel: &Channel, service: &str) -> Result<DescriptorPool> {
    let mut pool = DescriptorPool::new();
    let mut waiting = files(channel, MessageRequest::FileContainingSymbol(service.to_owned())).await?;
    let mut rounds = 0;
    while let Some(file) = waiting.pop() {
        ensure!(rounds < 100, "the descriptors of {service} have no end");
        rounds += 1;
        let missing = file.dependency.iter().find(|name| pool.get_file_by_name(name).is_none()).cloned();
        if let Some(name) = missing {
            waiting.push(file);
            waiting.extend(files(channel, MessageRequest::FileByFilename(name)).await?);
        } else if pool.get_file_by_name(file.name()).is_none() {
            pool.add_file_descriptor_proto(file)?;
        }
    }
    Ok(pool)
}

async fn files(channel: &Channel, request: MessageRequest) -> Result<Vec<FileDescriptorProto>> {
    let answer = reflect(channel, request).await?;
    let MessageResponse::FileDescriptorResponse(response) = answer else {
        bail!("reflection answers {answer:?}");
    };
    let files = response.file_descriptor_proto.iter();
    files.map(|bytes| FileDescriptorProto::decode(bytes.as_slice()).context("decoding a descriptor")).collect()
}

async fn reflect(channel: &Channel, request: MessageRequest) -> Result<MessageResponse> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(iter([request])).await?.into_inner();
    let answer = answers.next().await.context("reflection has no answer")??;
    answer.message_response.context("reflection has an empty answer")
}

/// Messages that are encoded already.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use prost_reflect::prost::bytes::BufMut as _;
        buffer.put_slice(&item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use prost_reflect::prost::bytes::Buf as _;
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
